"""`python -m demo.genai`."""

from demo.genai.command import app

app()

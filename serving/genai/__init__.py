"""Parts that vLLM serves: the host that runs it. vLLM itself lives in an interpreter of its own.

Imported by no other package of `serving`: agents start `python -m serving.genai.host`. Begin with `host`, then `engine_manager`. vLLM is not imported, its
API server is a child process: its pins are not the platform's.
"""

"""One vLLM process from its start to its end: confined, watched, started again, ended with all that it has started.

For `serving.genai`. Begin with `supervisor`. `process_reaper` runs as a file of its own, with the standard library alone.
"""

"""One vLLM process through its lifetime: confined, supervised, restarted, and stopped together with its descendants.

For `serving.genai`. Begin with `supervisor`. `process_reaper` runs as a separate script, with the standard library
only.
"""

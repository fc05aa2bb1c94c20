"""The host of parts served by vLLM, which runs in a separate interpreter.

Imported by no other package of `serving`: agents start `python -m serving.genai.host`. Begin with `host`, then
`engine_manager`. vLLM is not imported but runs as a child process (its API server), because its pins differ from the
platform's.
"""

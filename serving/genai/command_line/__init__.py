"""The command line and the environment of one vLLM, and `ipnext render`, which shows both without a host. Pure.

For `serving.genai`; imports none of it. Begin with `vllm_command`.
"""

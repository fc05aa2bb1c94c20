"""Parts that vLLM serves: the host that runs it, and the commands around it. vLLM itself lives in an interpreter of its own."""

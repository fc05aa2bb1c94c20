"""Measures one replica of a generative part from outside: `ipnext profile`. Needs aiohttp, neither torch nor vLLM."""

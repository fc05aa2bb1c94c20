"""A host's engine on the interpreter that has vLLM, in fresh interpreters, as engines of users are.

With a tiny random Llama of bfloat16. Two files of tests share one: it takes thrice the processor time of others.
"""

from contextlib import contextmanager

from tests.genai.support.hosts import Shelf, Yard
from tests.genai.support.tiny_models import write_tiny_llama

START_SECONDS = 900
"""A busy machine; on a quiet one half a minute."""
SETTINGS = {"maxModelLen": 2048, "maxNumSeqs": 16, "kvCacheGib": 0.1, "enforceEager": True, "dtype": "bfloat16"}
SETTINGS |= {"startSeconds": START_SECONDS}


@contextmanager
def plain_engine(python, root, cache):
    """Yield what the host says of it: its URL, and the name it answers by. The host ends as one that is killed."""
    shelf = Shelf(root)
    shelf.publish(1, write_tiny_llama(root / "llama", seed=1))
    yard = Yard(root, shelf.store)
    try:
        host = yard.start("real", f"--writable={cache}", IPNEXT_VLLM_PYTHON=python, VLLM_CACHE_ROOT=str(cache))
        host.hold(shelf.hold(1, model="llm", settings=SETTINGS))
        (held,) = host.ready(seconds=START_SECONDS).ready
        yield held
    finally:
        yard.close()

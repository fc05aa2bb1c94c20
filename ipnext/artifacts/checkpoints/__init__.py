"""Checkpoints of transformers and PEFT: read by configuration and headers alone, checked, made into snapshots.

For the client, validation and hosts of vLLM. Begin with `reader` and `checkpoint_import`.
"""

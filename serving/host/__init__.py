"""The host of torch parts: loads snapshots, answers for their generations, and executes a model's graph if its part answers last.

Imported by nothing: agents start `python -m serving.host`, most often as a fork (docs/decisions/0022). Begin with `host`, then `part_server`.
"""

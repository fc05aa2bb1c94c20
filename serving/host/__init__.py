"""The host of torch parts: loads snapshots, serves their generations, and executes graphs whose last node it serves.

Imported by nothing: agents start `python -m serving.host`, most often as a fork (docs/decisions/0022). Begin with
`host`, then `part_server`.
"""

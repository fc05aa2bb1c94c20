"""Weights as files: tensors that are mapped into memory, and the changed rows of a delta.

For the engines and for all that writes snapshots. Begin with `tensor_file`, then `weights`.
"""

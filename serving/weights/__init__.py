"""Weights as files: tensors that are mapped into memory, and the changed rows of a delta.

For the engines and for all code that writes snapshots. Begin with `tensor_file`, then `weights`.
"""

"""The torch engine: exported programs, read without pickle, run on the CPU.

For `serving.engines.base`, which finds it by name, and for the commands that write its programs. Begin with `engine`;
`program` has the format.
"""

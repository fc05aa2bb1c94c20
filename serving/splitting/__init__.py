"""Cuts a snapshot into parts by a policy: the program is cut, not the class, so the snapshot's directory is enough.

For the platform's optimization, `serving.compiling` and the entry point of `ipnext split`. Begin with `split`; then `split_plan`, from a program to
segments.
"""

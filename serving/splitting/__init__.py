"""Splits a snapshot into parts by a policy.

It partitions the program, not the class, so the snapshot's directory suffices. For the platform's optimization,
`serving.compiling` and the entry point of `ipnext split`. Begin with `split`; then `split_plan`, from a program to
segments.
"""

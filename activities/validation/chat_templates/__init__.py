"""Chat templates of checkpoints, which are programs of strangers: compiled and rendered in a process of its own.

For the validator `checkpoint`. Begin at `verdicts`.
"""

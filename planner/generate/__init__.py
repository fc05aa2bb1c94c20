"""Problems drawn from a seed, for benchmarks and tests.

For `ipnext plan generate`. Begin with `generate`.
"""

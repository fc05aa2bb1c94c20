"""What follows from a manifest without I/O: parts that serve, their tensors and throughput, and claims on quotas.

For API, store, activities and planner. Begin with `layout`.
"""

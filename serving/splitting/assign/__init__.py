"""Which part computes what: modules by the policy, shards by a budget, operations by their modules, segments by what waits for what.

For `serving.splitting`. Begin with `op_assignment`; `segments` is the result.
"""

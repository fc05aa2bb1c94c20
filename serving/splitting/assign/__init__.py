"""Assignment to parts.

Modules by the policy, shards by a budget, operations by their modules, segments by dependencies. For
`serving.splitting`. Begin with `op_assignment`; `segments` is the result.
"""

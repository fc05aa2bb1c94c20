"""The plan of a large fleet by column generation: prices for supply, the best configuration of each model at them, a whole plan of those.

For `planner.solve`. Begin with `solver`. Its loops are compiled (`planner.jit`); docs/decisions/0005 says why it is not one integer program.
"""

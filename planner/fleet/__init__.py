"""The plan of a large fleet by column generation.

Prices for supply, each model's best configuration at them, a whole plan. For `planner.solve`. Begin with `solver`. Its
loops are compiled (`planner.jit`); docs/decisions/0005 explains why it is not one integer program.
"""

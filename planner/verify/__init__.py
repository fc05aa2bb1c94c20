"""Independent checkers: they recompute every figure and every rule of a plan or a transition from its document, and share no code with the solvers.

For everybody who doubts a result: the CLI, tests, the platform before it adopts a plan. Begin with `plan_checker` and `transition_checker`.
"""

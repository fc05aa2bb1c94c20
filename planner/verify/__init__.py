"""Independent checkers: they recompute every figure and rule of a plan or a transition from its document.

They share no code with the solvers. For the CLI, tests, and the platform before it adopts a plan. Begin with
`plan_checker` and `transition_checker`.
"""

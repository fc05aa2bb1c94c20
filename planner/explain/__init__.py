"""Why a plan is as it is: binding rules, prices, the runner-up, what another fleet would give.

For the CLI and the platform's explanations. Begin with `explanation`.
"""

"""Explanations of a plan: binding rules, prices, the runner-up, and plans of a changed fleet.

For the CLI and the platform's explanations. Begin with `explanation`.
"""

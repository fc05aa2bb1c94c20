"""Gates of a rollout: their limits, the evidence for them, and the comparison of two generations.

For manifests, activities, and routers and hosts, which count. Begin with `gate`; `sketch` is the form of the counts.
"""

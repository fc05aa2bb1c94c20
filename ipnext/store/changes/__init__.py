"""Changes of models with all that they write: publications, transitions, deployments, drains, freezes, events.

Parts of the repository: `ipnext.store.repository` has them all. Begin with `changes`.
"""

"""What a worker process does beside its workflows: health, renewal of credentials, fault points of tests.

Only `workflows.worker` imports it, and begins each of them.
"""

"""A workflow with the plain Temporal SDK that composes modules of IPnext by its client.

`workflow` decides, `steps` has the activities, `training` the model, `worker` serves both.
"""

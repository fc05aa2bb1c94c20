"""Parts of the workflow `model`, the entity of a model: which change runs next, which may pass, what users control.

Only workflows import it. Begin with `change_queue`, which has the rules.
"""

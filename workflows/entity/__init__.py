"""Parts of the workflow `model`, the entity of a model: its state and rules, its runs, its marks in the store.

Only workflows import it. Begin with `state`, which decides; `change_queue` has the rules of order.
"""

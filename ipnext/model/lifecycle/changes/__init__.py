"""Changes of models, and one input and one output for each workflow, update and activity that carries them out.

For workflows, activities, store and API. Begin with `change`, then `entity`, `lifecycle_run` and `transition_run`. Add
fields with defaults; never change a type. Plans, route tables and transitions are passed by id: the store has them.
"""

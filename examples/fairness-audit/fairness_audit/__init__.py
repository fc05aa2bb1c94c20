"""An audit of ranking models: the mean score of each group of rows of the replay set, compared.

`stage` is the stage of a lifecycle, `check` the check of the validation that it needs, `scores` the confined process
that runs the model.
"""

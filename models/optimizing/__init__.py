"""Make a model smaller or faster: write a new model folder, with a report of what that costs.

`methods` finds the model and writes the new folder; `pruning` removes channels of a network; `comparison` compares both
models as they are served; `job` runs all steps.
"""

"""Make a model smaller or faster: write a new model folder, with a report of what that costs.

`sources` finds the model; `pruning` removes channels of a network; `methods` write the new folder; `comparison`
compares both models as they are served; `job` runs all steps.
"""

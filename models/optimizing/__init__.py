"""A model made smaller or faster, as a new model folder with a report of what that has cost.

`sources` finds what is to be optimized; `pruning` takes channels out of a network; `methods` write the new folder;
`agreement` and `speed` compare what was with what is, both served as they would be; `job` is all of it in order.
"""

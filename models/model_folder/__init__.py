"""Model folders: a user's own model in a folder with a model.toml, which names its other files.

`description` reads model.toml by means of `keys`. `own_code` imports a network that the user has written. `checkpoint`
reads weights, `pickled` explains those that are refused, and `fitting` loads them into the network. `sizes` resizes the
layers of a pruned network. `labels` reads the names of the classes. `building` makes a model of all that, `starting`
writes a first model.toml, and `writing` writes a whole folder.
"""

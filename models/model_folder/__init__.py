"""A model of the user's own: a folder with a model.toml, which says what its other files are.

`description` reads model.toml by way of `keys`; `own_code` finds a network that the user has written; `checkpoint`
reads weights, `pickled` looks at those that it refuses, and `fitting` puts them in, `sizes` having made room for what
pruning has left of them; `labels` names the classes;
`building` makes of all that what can be served. `writing` writes such a folder.
"""

"""Model folders: a user's own model in a folder with a model.toml, which names its other files."""

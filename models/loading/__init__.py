"""From a name or a folder to a network with its weights."""

"""Reports of the lens and the commands, for terminals and as HTML."""

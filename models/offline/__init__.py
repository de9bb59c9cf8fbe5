"""Jobs over files: read images of folders, run them as the server does, and write the results to files."""

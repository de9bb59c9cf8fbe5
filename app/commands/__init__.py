"""The commands of `gradless` that have images in files, and what they share on a terminal."""

"""The commands of `gradless`, and what they share on a terminal."""

"""Reports for people: on a terminal, as lines of text, and as HTML pages."""

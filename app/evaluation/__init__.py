"""`gradless evaluate`: how good a model is on labelled images, told on a terminal, as JSON and as a page."""

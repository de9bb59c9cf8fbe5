"""Run comparisons of served models, one at a time. The measurement is in the package `gradless`."""

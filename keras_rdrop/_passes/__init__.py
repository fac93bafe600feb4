"""The layout of the passes, the training graph that repeats the rows, and the running step."""

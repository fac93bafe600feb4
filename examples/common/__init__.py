"""The code that the examples share: arguments, data, helpers around `fit`, and the report."""

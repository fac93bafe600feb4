"""The rows of the behaviour table, one module per topic."""

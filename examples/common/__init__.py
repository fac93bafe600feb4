"""What the examples share: arguments, data, training, and the report at the end."""

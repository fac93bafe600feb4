"""Helpers of the tests, and the programs that some tests run in processes of their own."""

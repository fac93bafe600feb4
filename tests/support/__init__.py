"""Helpers for the tests, and programs that some tests run in separate processes."""

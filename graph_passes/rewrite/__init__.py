"""The only code that changes a graph."""

"""Where the numbers of a weight come from."""

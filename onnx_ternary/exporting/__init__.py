"""The way back: converted products as standard operators."""

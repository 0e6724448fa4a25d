"""Model files: read lazily, written whole or not at all."""

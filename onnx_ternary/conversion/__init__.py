"""Model in, verified model out."""

"""Whether a converted model gives the answers of its original."""

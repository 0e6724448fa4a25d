"""Index formats: building, decoding and checking the tensors of a weight matrix."""

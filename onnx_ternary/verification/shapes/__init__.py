"""What a model's operators say about the sizes of its inputs and the range of its integers."""

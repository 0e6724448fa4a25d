"""What the op computes: its nodes, a reference in numpy, its bounds and its function body."""

"""One file per family of operators: what a rule finds, and what it refuses with a reason."""

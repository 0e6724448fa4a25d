"""What writes results into README.md and docs: tables, plots and the picture of a terminal."""

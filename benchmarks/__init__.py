"""Benchmarks of the project's speed, cost and reproducibility: `make bench`."""

"""What the project's figures of speed, cost and reproducibility are measured with: `make bench`."""

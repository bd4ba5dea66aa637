"""Files, git, DVC, processes and metrics.yaml. It computes nothing."""

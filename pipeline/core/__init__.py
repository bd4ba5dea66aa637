"""Files, git, DVC, processes and metrics.yaml. No numerical code."""

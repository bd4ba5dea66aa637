"""`make review` and `make verify`: check whether committed results can be trusted."""

"""`make sweep` and `make compare`: many runs, and what they show together."""

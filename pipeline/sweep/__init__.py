"""`make sweep` and `make compare`: run a grid of parameters, and compare the runs."""

"""The experiment: a table, a small network, its training and its figure. DVC watches this folder."""

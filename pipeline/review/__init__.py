"""`make review` and `make verify`: whether committed results may be believed."""

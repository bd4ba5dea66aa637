"""`make server` and `make move-store`: a tracking server for a team."""

"""`make server` and `make move-store`: a team's tracking server."""

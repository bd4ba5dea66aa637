"""MLflow: a run is written down in a journal and delivered. It observes, and cannot change a result."""

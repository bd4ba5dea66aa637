"""Tracking: write each run to a journal and deliver it to MLflow. Tracking observes and never changes a result."""

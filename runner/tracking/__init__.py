"""Run records in MLflow: logging through a journal on disk, recovery, resuming, and the model registry."""

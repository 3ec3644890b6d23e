"""Checkpoint files: headers, detection of the model, key maps, loading."""

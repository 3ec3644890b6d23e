"""Predictions reused from earlier steps."""

"""Classifier-free guidance and its variants."""

"""Editing of real images: inversion to noise."""

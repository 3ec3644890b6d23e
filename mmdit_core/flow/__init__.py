"""Rectified flow: the path between data and noise, sigma schedules, noise."""

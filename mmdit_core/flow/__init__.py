"""Rectified flow: the path between data and noise, sigma and its schedules, windows of the sampling."""

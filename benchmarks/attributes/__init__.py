"""Accuracy of images by attribute: colour, shape, count and relation, judged without a neural network."""

"""What block controls do to the shipped model's pictures, scored by attribute."""

"""The effect of block controls on the small model's images, by attribute."""

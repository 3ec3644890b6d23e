"""Contact sheets, curves and heat maps."""

"""How often the judge errs: right images and images with one fault each, drawn for this alone."""

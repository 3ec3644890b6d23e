"""A prompt to an image through ComfyUI's own nodes, in this process, with block controls on the model."""

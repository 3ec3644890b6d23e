"""One sampling run inside ComfyUI's sampler."""

"""The only place that touches ComfyUI's internals, one topic a file."""

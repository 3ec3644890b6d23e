"""The only place that touches ComfyUI's internals, one topic a file."""

from . import release

# Here, because no module of this folder is imported before.
release.require()

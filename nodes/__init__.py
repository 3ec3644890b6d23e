"""The pack's nodes. Each module lists its own; this is the registry that ComfyUI reads."""

from . import caching, control, edit, invert, loader, text, web_api
from .analysis import node as analysis
from .comfyui.frontend import web_files
from .comfyui.loading import folders
from .sampler import node as sampler
from .sweep import node as sweep

folders.register()
web_files.register()
web_api.register()

_NODES = {
    name: node
    for module in (loader, text, sampler, invert, edit, control, analysis, sweep, caching)
    for name, node in module.NODES.items()
}

NODE_CLASS_MAPPINGS = {name: node for name, (node, _) in _NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in _NODES.items()}

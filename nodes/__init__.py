"""The pack's nodes. Each module lists its own; this is the registry that ComfyUI reads."""

from . import caching as speed
from . import control as blocks
from . import invert, loader, text
from . import web_api as routes
from .analysis import node as analysis
from .comfyui.frontend import web_files as page
from .comfyui.loading import folders
from .sampler import node as sampling

folders.register()
page.register()
routes.register()

_FAMILIES = (loader, text, sampling, invert, blocks, analysis, speed)
_NODES = {name: node for family in _FAMILIES for name, node in family.NODES.items()}

NODE_CLASS_MAPPINGS = {name: node for name, (node, _) in _NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in _NODES.items()}

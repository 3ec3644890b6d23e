"""The pack's nodes. Each module lists its own; this is the registry that ComfyUI reads."""

from . import analysis, blocks, invert, loader, routes, sampling, text
from .host import folders, page

folders.register()
page.register()
routes.register()

_NODES = {**loader.NODES, **text.NODES, **sampling.NODES, **invert.NODES, **blocks.NODES, **analysis.NODES}

NODE_CLASS_MAPPINGS = {name: node for name, (node, _) in _NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in _NODES.items()}

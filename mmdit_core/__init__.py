"""MMDiT in plain PyTorch: the model, its checkpoints, rectified flow, solvers, block controls.

Needs torch, safetensors and numpy. The names here are the library's interface.
"""

from .checkpoints.detect import config_from_state_dict
from .checkpoints.errors import CheckpointError
from .checkpoints.load import load_checkpoint, load_model
from .config import KNOWN_MODELS, FluxConfig, MMDiTConfig, QwenImageConfig
from .control.grammar import parse_blocks
from .control.spec import BlockControl
from .flow.path import flow_loss, interpolate, sample_timesteps, velocity_target
from .flow.schedules import sigmas
from .models.flux import Flux
from .models.qwen_image import QwenImage
from .models.sd3 import MMDiT
from .solvers import SOLVERS, solve

__version__ = "0.2.0"

# fmt: off
__all__ = [
    "KNOWN_MODELS", "SOLVERS", "BlockControl", "CheckpointError", "Flux", "FluxConfig", "MMDiT", "MMDiTConfig",
    "QwenImage", "QwenImageConfig", "__version__", "config_from_state_dict", "flow_loss", "interpolate",
    "load_checkpoint", "load_model", "parse_blocks", "sample_timesteps", "sigmas", "solve", "velocity_target",
]

"""How far each block's skip, disable and boost move the image: block analysis without ComfyUI."""

import torch
from common import options

from mmdit_core import QwenImage, QwenImageConfig, load_model, sigmas, solve
from mmdit_core.analysis import OPERATIONS, plan, relative_l2
from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import ModelCall
from mmdit_core.control.spec import NEGATIVE, POSITIVE
from mmdit_core.guidance.cfg import cfg

given = options(
    __doc__, QwenImage(QwenImageConfig(hidden_size=64, num_heads=2, depth=3, context_dim=32, axes_dim=(4, 14, 14)))
)

model = load_model(given.checkpoint, device=given.device)
like = {"dtype": model.dtype, "device": given.device}
context = torch.randn(2, 20, model.config.context_dim, **like)  # the encoded prompt and negative prompt
noise = torch.randn(1, model.config.in_channels, 16, 16, **like)
call = ModelCall(double=model.config.num_blocks, single=0, branches=(POSITIVE, NEGATIVE), batch=2)


def sample(controls):
    hooks = {"patches_replace": {"dit": compile_controls(controls, call)}}

    def velocity(x, sigma):
        x, timesteps = x.repeat(2, 1, 1, 1), 1000 * sigma.repeat(2)
        return cfg(*model(x, timesteps, context=context, transformer_options=hooks).chunk(2), scale=4.0)

    return solve(velocity, noise, sigmas(given.steps), solver="euler")


baseline = sample([])
for cell in plan(OPERATIONS, range(model.config.num_blocks)):
    print(f"{cell.operation:8} block {cell.block:2}: {relative_l2(sample([cell.control()]), baseline):.4f}")

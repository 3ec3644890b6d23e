"""Tests that run on the oldest ComfyUI besides those marked `floor`: some for each way to reach into it.

File in tests/nodes -> patterns of test names. A pattern that names no test is an error.
"""

from __future__ import annotations

import re

FLOOR: dict[str, tuple[str, ...]] = {
    "control/test_controls_flux.py": (r"test_attention_and_value_boosts_equal_a_dense_reference",),
    "control/test_controls_other.py": (r"test_attention_and_value_boosts_equal_a_dense_reference",),
    "control/test_controls_qwen.py": (r"test_attention_and_value_boosts_equal_a_dense_reference",),
    "control/test_guiders.py": (r"test_dual_cfg_guider",),
    "families/test_oracles.py": (
        r"an_oracle.*(SD3|FLUX.1 dev|FLUX.2|Chroma|Qwen-Image-Edit-2511|Z-Image)-(prompt|skip|weights)\b",
        r"an_oracle.*(AuraFlow|Lens|Lumina2|HunyuanVideo|LTX-Video)-(prompt|skip|weights)\b",
    ),
    "families/test_table.py": (r"test_every_model_of_comfyui", r"test_a_row_names_the_network"),
    "models/test_model_patcher.py": (r"test_ksampler", r"test_a_lora_changes_ours", r"test_weight_dtypes"),
    "models/test_sd3_against_comfyui.py": (r"test_same_velocity_as_comfyuis_model\[",),
    "sampler/test_sampler_golden.py": (r"test_old_settings",),
    "sampler/test_sampler_nodes.py": (r"test_mmdit_sampler_equals_ksampler", r"test_area_conditioning"),
    "sampler/test_sampler_other_models.py": (r"test_the_block_that_breaks_is_named",),
    "text/test_text_node.py": (r"test_defaults_are_bit_equal", r"test_comfyuis_conditioning_nodes"),
}


def chosen(file: str, test: str) -> list[tuple[str, str]]:
    """The entries that choose a test. Args: file, in tests/nodes; test, its name with its parameters."""
    return [(file, pattern) for pattern in FLOOR.get(file, ()) if re.search(pattern, test)]

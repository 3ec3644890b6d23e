"""The classes of ComfyUI 0.30.0 whose blocks the nodes do not control, each with the reason."""

from __future__ import annotations

_UNET = "a U-Net, which has no transformer blocks of this kind"
_NO_TEXT = "it makes no image from a text"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("LotusD", "Stable_Zero123", "SD15_instructpix2pix", "SD15", "SD20", "SD21UnclipL", "SD21UnclipH"),
            *("SDXL_instructpix2pix", "SDXLRefiner", "SDXL", "SSD1B", "KOALA_700M", "KOALA_1B", "Segmind_Vega"),
            *("SD_X4Upscaler", "Stable_Cascade_C", "Stable_Cascade_B", "SV3D_u", "SV3D_p", "SVD_img2vid"),
        ),
        _UNET,
    ),
    **dict.fromkeys(
        (
            *("StableAudio", "StableAudio3", "ACEStep", "ACEStep15", "Hunyuan3Dv2", "Hunyuan3Dv2mini"),
            *("Hunyuan3Dv2_1", "TripoSplat", "RT_DETR_v4", "SAM3", "SAM31", "DepthAnything3", "SeedVR2"),
            "HunyuanImage21Refiner",
        ),
        _NO_TEXT,
    ),
    **dict.fromkeys(
        ("PixArtAlpha", "PixArtSigma"),
        "its blocks are given the texts of all rows as one row, so that prompts cannot be told apart",
    ),
    **dict.fromkeys(
        ("HunyuanDiT", "HunyuanDiT1"),
        "its later blocks are given the image of an earlier block, too, so that no block is a unit of its own",
    ),
    **dict.fromkeys(("CosmosT2V", "CosmosI2V"), "its blocks hold the rows of a batch in the fourth dimension"),
    "WAN21_CausalAR_T2V": "its blocks keep keys and values of the frames before from one model call to the next",
    "WAN21_Vace": "a second list of blocks reads the text, too, and adds to the image",
    "WAN21_FlowRVS": "it starts from a video and no noise, and makes a mask of it",
    "HiDreamO1": "its blocks are those of a language model, which keeps keys and values of the text for later calls",
}

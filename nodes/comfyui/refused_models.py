"""The classes of ComfyUI 0.30.0 whose blocks the nodes do not control, each with the reason."""

from __future__ import annotations

_UNET = "a U-Net, which has no transformer blocks of this kind"
_CROSS = "its image reads the text by cross-attention in blocks that are not in the table yet"
_SINGLE = "its blocks are not in the table yet"
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
        (
            *("PixArtAlpha", "PixArtSigma", "HunyuanDiT", "HunyuanDiT1", "LTXAV", "MiniMaxH3"),
            *("CosmosT2V", "CosmosI2V"),
            *("WAN21_CausalAR_T2V", "WAN21_Vace"),
            *("WAN22_S2V", "WAN21_HuMo", "WAN22_Animate", "WAN21_FlowRVS"),
            *("WAN21_SCAIL", "WAN21_SCAIL2", "WAN22_WanDancer"),
        ),
        _CROSS,
    ),
    **dict.fromkeys(
        (
            *("GenmoMochi", "ZImagePixelSpace", "PiD", "PixelDiTT2I", "HiDreamO1"),
            *("CogVideoX_Inpaint", "CogVideoX_I2V", "CogVideoX_T2V"),
        ),
        _SINGLE,
    ),
}

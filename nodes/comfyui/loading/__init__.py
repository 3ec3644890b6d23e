"""Checkpoints as ComfyUI's MODEL, CLIP and VAE."""

"""Prompts as ComfyUI's conditionings."""

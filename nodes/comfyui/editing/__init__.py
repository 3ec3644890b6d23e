"""Editing: FlowEdit, inversion to noise, and RF-Inversion's controller, inside ComfyUI's guider."""

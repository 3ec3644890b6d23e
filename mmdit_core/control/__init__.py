"""Block controls: skip, disable, boost and block prompts."""

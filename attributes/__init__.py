"""What the small model's pictures show and its captions mean: its world, read from words and judged from pixels.

Its training, its evaluation and BlockAnalysis share this folder. The core knows nothing of it.
"""

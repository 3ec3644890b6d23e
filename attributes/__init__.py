"""The small model's world: scenes of flat shapes, their captions, and a judge that scores images by image analysis.

BlockAnalysis, the training and the benchmarks use it. It needs numpy and scipy only; the core does not import it.
"""

"""Painted landscape pictures with known content and captions: the training data of the demo model.

Reading order: `layout` (where things are in a picture), `scene` (what a picture shows), `canvas` (drawing primitives),
`places` and `painter` (from a scene to pixels), `captions` (from a scene to a prompt), `dataset` (pictures on disk).
"""

"""Encoded bytes ⇄ pixels, with limits on size and memory. The only package that imports Pillow; no torch.

Reading order: `codec` (decode, encode), `sniff` (reads a file's header without decoding a pixel), `header` (the
result), then one module for each format: `jpeg`, `png`, `webp`, and `exif` for the orientation.
"""

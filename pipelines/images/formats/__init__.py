"""Headers of encoded pictures, read without decoding a pixel. Pure Python, no Pillow.

Reading order: `sniff` (which format it is), `header` (the result), then one module for each format, and `orientation`.
"""

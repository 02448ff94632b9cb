"""Encoded bytes ⇄ pixels, with limits on size and memory. The only package that imports Pillow; no torch.

Reading order: `codec` (decode, encode), `formats` (reads a file's header), `rgb` (to the size and colours asked for),
then `decoder` and `decoder_process` for large pictures.
"""

"""Latent consistency image-to-image on Stable Diffusion 1.x: the algorithm and its networks.

Reading order: `lcm` is the algorithm from top to bottom; `noise_schedule`, `trajectory`, `prompts` and `safety` are its
parts, `calls` what a device computes of it at once; `unet` and `vae` are the networks, built of `blocks`, which are
built of `kernels`.
"""

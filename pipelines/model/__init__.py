"""The algorithm and its networks: latent consistency image-to-image with Stable Diffusion 1.5.

Reading order: lcm; noise_schedule, trajectory; prompts, safety; unet, vae, blocks, kernels.
"""

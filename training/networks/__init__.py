"""The parts of the demo model, each with its loss and its training runs.

Reading order: `autoencoder` (pictures to latents and back), `text_encoder`, `latents` (encoded training pictures on
disk), `denoiser` (the UNet), `adversarial` (its last training run), `safety_checker`, `classifier` (judges the results;
not shipped).
"""

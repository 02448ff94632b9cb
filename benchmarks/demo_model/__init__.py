"""The built-in demo model: a painter of scenes, and the training of a tiny latent diffusion model on its pictures.

Reading order: `scene` (what a picture shows), `canvas`, `places` and `painter` (how it is painted), `captions` (how it
is told), `data` (pictures on disk), `autoencoder`, `text`, `unet`, `checker` (the four parts that are trained),
`export` (the folder that ships), `classifier` and `evaluate` (whether it works), `sheets` (to look at).
"""

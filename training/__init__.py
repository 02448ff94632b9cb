"""The built-in demo model: a painter of scenes, and the training of a tiny latent diffusion model on its pictures.

Reading order: `scene` and `layout` (what a picture shows, and where), `canvas`, `places` and `painter` (how it is
painted), `captions` (how it is told), `data` (pictures on disk), `training` and `muon` (how anything is trained),
`autoencoder`, `text`, `latents`, `unet`, `checker` (the four parts that are, and what the third learns from),
`export` (the folder that ships), `classifier` and `evaluate` (whether it works), `sheets` (to look at).
"""

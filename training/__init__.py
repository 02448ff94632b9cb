"""The built-in demo model: training pictures, the training of a tiny latent diffusion model, and its evaluation.

Reading order: `scenes` (the painted training pictures), `config` (every number of the training), `trainer` and `muon`
(training loop and optimizer), `networks` (the parts of the model), `export` (the folder that ships), `sampling`
(pictures from that folder), `evaluate` (figures), `contact_sheet` (pictures to look at), `example_picture` (the photo
that the server ships).
"""

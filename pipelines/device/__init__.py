"""A model on its device, for torch. The only package that knows CUDA and mps.

Reading order: `loader` puts a checkpoint on its device, `torch_backend` runs the stages for the engine, `streams` and
`cuda_graphs` are how it does so fast, `captures` says what is captured within the card's memory, `memory` bounds the
batches, `cuda_support` and `dtypes` judge what a card can do, `cuda_capture` and `devices` are details.
"""

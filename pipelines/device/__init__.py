"""The model on a device: loaded, measured, captured and fed.

Reading order: loader, torch_backend; devices, streams, memory; cuda_graphs, compile.
"""

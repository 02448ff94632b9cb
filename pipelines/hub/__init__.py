"""Which files a model takes and where they come from; the only package that imports huggingface_hub.

Reading order: manifest; layout, source, sd15; client, download.
"""

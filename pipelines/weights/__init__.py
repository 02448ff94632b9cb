"""From files to modules with weights; the only package that imports diffusers and transformers.

Reading order: checkpoint; architectures, tensors, mapped; single_file, lora; demo.
"""

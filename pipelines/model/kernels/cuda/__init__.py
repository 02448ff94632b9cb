"""Kernels of our own for CUDA, written in CUDA C and compiled at the start for the card that is there.

group_norm    group norm of channels-last pictures, with what comes before and after it
compiler      CUDA C → kernels that can be launched, by NVIDIA's compiler library (NVRTC)
trials        new kernels are tried once; where that ended the process twice, they are left alone
"""

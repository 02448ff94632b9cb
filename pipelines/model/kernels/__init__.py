"""Convolutions, matrix products and attention in a device's fastest form: weights in, modules out.

    products    matrix products and 1×1 convolutions
    convolution which form a convolution takes
    direct      convolutions as they are defined
    winograd    3×3 convolutions with a quarter of the multiplications, float32 on a CPU
    doubling    nearest-neighbour doubling before a convolution, and pairs of convolutions, as one
    attention   attention of query, key and value
    choices     which form is faster here: timed once per machine
    cuda        what torch lacks there: group norm of channels-last pictures, a choice by timing of its own kernels

Else on CUDA they are torch's own, weights channels-last. Activations are channels-last everywhere: [N, C, H, W] with C
innermost, so that [N, H·W, C] is a view of them.
"""

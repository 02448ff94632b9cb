"""What torch lacks on CUDA: kernels of our own, and a choice among its own.

group_norm      group norm of channels-last pictures, with what comes before and after it
compiler        CUDA C → kernels that can be launched, by NVIDIA's compiler library (NVRTC), for the card that is there
fused_attention which of torch's kernels computes attention, by timing
fused_relu      convolutions with a ReLU after them as one launch of cuDNN's, where that computes right
trials          new kernels are tried once; where that ended the process twice, they are left alone
"""

"""Counts the kernels that CUDA launches for a function, by its operators on the meta device, in CUDA's layouts.

On the meta device torch gives the layouts of a CPU. Two of CUDA's differ: torch's group norm takes and gives pictures
whose channels are outermost, and a convolution with channels-last weights copies what has another layout. And attention
is one kernel there, whose result has the heads of a token side by side.
"""

from collections import Counter

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Launches of an operator which is not one kernel. Group norm: moments, a factor and a term for each channel, and the
# result; ours: statistics and the result. Views and empty tensors: none.
_LAUNCHES = {"native_group_norm": 3, "fourstep::group_norm": 2}
_NONE = {"prim::device", "empty", "empty_like", "new_empty", "detach", "_unsafe_view"}


class Launches(TorchDispatchMode):
    """A context in which `counts` grows: launches by operator. "copy" is a change of layout, "bias" a convolution's."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self._attention = _Attention(self.counts)

    def __enter__(self):
        self._attention.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._attention.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        args = list(args)
        if name == "native_group_norm":
            args[0] = self._laid_out(args[0], torch.contiguous_format)
        elif name == "convolution":
            args[0] = self._laid_out(args[0], torch.channels_last)
            self.counts["bias"] += args[2] is not None  # cuDNN's convolution has none
        result = func(*args, **(kwargs or {}))
        if name == "native_group_norm":  # the meta device keeps the layout
            result = (result[0].contiguous(), *result[1:])
        elif name == "convolution":
            result = result.contiguous(memory_format=torch.channels_last)
        if not func.is_view and name not in _NONE:
            self.counts["copy" if name == "clone" else name] += _LAUNCHES.get(name, 1)
        return result

    def _laid_out(self, x, layout):
        self.counts["copy"] += not x.is_contiguous(memory_format=layout)
        return x.contiguous(memory_format=layout)


class _Attention(TorchFunctionMode):
    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.counts["attention"] += 1
            query, _, value = args
            count, heads, tokens, _ = query.shape
            return query.new_empty(count, tokens, heads, value.shape[3]).transpose(1, 2)
        return func(*args, **(kwargs or {}))

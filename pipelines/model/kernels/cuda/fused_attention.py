"""Which of torch's fused kernels computes attention on CUDA: timed once per machine, at the strides of the UNet.

torch itself goes by what a kernel takes, not by what is faster at a size. What it takes itself is named "torch", and is
the rule where nothing was timed. Its last resort, plain operations with all scores in memory, is never chosen.
"""

from __future__ import annotations

import itertools
import warnings
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from pipelines.model.kernels import choices
from pipelines.model.kernels.choices import UnfitError
from pipelines.model.kernels.cuda import trials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

    Given: TypeAlias = tuple[Tensor, Tensor, Tensor]

TORCH = "torch"

# torch's switches of its kernels. All are on, except where a call has but one.
SWITCHES: Mapping[str, Callable[[bool], None]] = {
    "flash": torch.backends.cuda.enable_flash_sdp,
    "efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    "cudnn": torch.backends.cuda.enable_cudnn_sdp,
    "math": torch.backends.cuda.enable_math_sdp,
}
KERNELS = ("flash", "efficient", "cudnn")

# How much faster another kernel must be than torch's own choice, which needs no switches.
_GAIN = 1.05
# Calls of a run that is timed, and the runs; the clock's cycles for which the device sleeps while they are launched.
_CALLS, _RUNS, _SLEEP = 10, 4, 3_000_000

# By shape of the query, number of keys and dtype; only what is not torch's own choice.
_chosen: dict[Any, str] = {}


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return attention as `kernels.attention.attend` has it, by the kernel that was chosen for its size."""
    kernel = _chosen.get(_size(query, key, query.shape[0]))
    return F.scaled_dot_product_attention(query, key, value) if kernel is None else by(kernel, query, key, value)


def by(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return attention by one of torch's kernels. Raises `RuntimeError` if that does not take it."""
    # As `torch.nn.attention.sdpa_kernel` does, which takes the host as long as a launch or two.
    others = [switch for name, switch in SWITCHES.items() if name != kernel]
    for switch in others:
        switch(False)  # noqa: FBT003 – torch's own
    try:
        return F.scaled_dot_product_attention(query, key, value)
    finally:
        for switch in others:
            switch(True)  # noqa: FBT003


class Noted(TorchFunctionMode):
    """A context in which all fused attention is noted: query, key and value of each size."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[Any, Given] = {}

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.given.setdefault(_size(args[0], args[1], 1), args[:3])
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def choose(given: Iterable[Given], rows: Iterable[int]) -> None:
    """Choose the kernels for attention of one row as it was given, and for as many `rows` of it.

    Before anything is captured: a graph keeps its kernels.
    """
    _chosen.clear()
    for one, count in itertools.product(given, rows):
        query, key, _ = one
        _, heads, tokens, width = query.shape
        dtype = str(query.dtype).removeprefix("torch.")
        several = cache(partial(repeated, one, count))
        kernel = choices.current().choose(
            f"attention {dtype}, {heads} heads of {width}, {tokens} to {key.shape[2]}, rows {count}",
            {name: partial(checked, name, several, query.device) for name in (TORCH, *KERNELS)},
            rule=TORCH,
            handicaps=dict.fromkeys(KERNELS, _GAIN),
            seconds=device_seconds,
        )
        if kernel != TORCH:
            _chosen[_size(query, key, count)] = kernel


def chosen(query: Tensor, key: Tensor) -> str:
    """Return the name of the kernel that was chosen for attention of this size."""
    return _chosen.get(_size(query, key, query.shape[0]), TORCH)


def repeated(given: Given, count: int) -> Given:
    """Return random values for `count` rows, laid out as query, key and value of one row are: in one tensor or more."""
    made: dict[int, Tensor] = {}
    tensors = []
    for tensor in given:
        storage = tensor.untyped_storage()
        size = storage.nbytes() // tensor.element_size()
        if storage.data_ptr() not in made:
            generator = torch.Generator(tensor.device).manual_seed(len(made))
            made[storage.data_ptr()] = torch.randn(
                count * size, generator=generator, dtype=tensor.dtype, device=tensor.device
            )
        values = made[storage.data_ptr()]
        tensors.append(
            values.as_strided((count, *tensor.shape[1:]), (size, *tensor.stride()[1:]), tensor.storage_offset())
        )
    query, key, value = tensors
    return query, key, value


def checked(kernel: str, make: Callable[[], Given], device: torch.device) -> Callable[[], object]:
    """Return calls of a kernel to be timed. Raises `UnfitError` if it can't compute this, or computes wrong numbers."""
    run = F.scaled_dot_product_attention if kernel == TORCH else partial(by, kernel)
    name = f"attention by {kernel}, {torch.cuda.get_device_name(device)}, {device}, torch {torch.__version__}"
    with trials.current().trial(name) as may_try, warnings.catch_warnings(record=True) as said:
        if not may_try:
            raise UnfitError(f"it ended engines; to try again, delete {trials.FILE}")
        warnings.simplefilter("always")
        try:
            given = make()
            share = error(run(*given), given)
        except torch.AcceleratorError:
            raise
        except RuntimeError as failure:
            why = [*(str(each.message) for each in said), f"{type(failure).__name__}: {failure}"]
            raise UnfitError(" ".join("; ".join(why).split())) from failure
    if not share <= 1.0:  # also what is not a number
        raise UnfitError(f"wrong by {share:.1f} times what is allowed")

    def calls() -> None:
        for _ in range(_CALLS):
            run(*given)

    return calls


def error(found: Tensor, given: Given) -> float:
    """Return the largest error of attention, in units of what is allowed; NaN if a result is not a number.

    Allowed are some roundings of the largest result: the weights of keys are rounded, too.
    """
    shares = []
    for of_row in zip(found, *given, strict=True):
        for out, query, key, value in zip(*of_row, strict=True):  # of one head: scores may take 64 MiB
            scores = (query.float() * query.shape[1] ** -0.5) @ key.float().T
            exact = torch.softmax(scores, dim=1) @ value.float()
            allowed = max(8 * torch.finfo(found.dtype).eps, 1e-4) * exact.abs().max()
            shares.append((out.float() - exact).abs().max() / allowed)
    return float(torch.stack(shares).max())


def device_seconds(run: Callable[[], object]) -> float:
    """Return the seconds which a CUDA device takes for a run, without its launches: the fastest of some."""
    fastest = float("inf")
    for _ in range(_RUNS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(_SLEEP)  # type: ignore[no-untyped-call]  # until all is launched
        began.record()
        run()
        ended.record()
        ended.synchronize()
        fastest = min(fastest, began.elapsed_time(ended) / 1e3)
    return fastest


def _size(query: Tensor, key: Tensor, rows: int) -> Any:
    return rows, query.shape[1:], key.shape[2], query.dtype

"""Which of torch's fused kernels computes attention on CUDA, with kernels that a processor stands in for."""

import functools
import json
import logging
import warnings

import pytest
import torch
import torch.nn.functional as F

from pipelines.model.kernels import attention, choices
from pipelines.model.kernels.choices import Choices
from pipelines.model.kernels.cuda import fused_attention, trials
from pipelines.model.kernels.cuda.trials import Trials

plain = F.scaled_dot_product_attention

KERNELS = ("cudnn", "flash", "efficient")  # in the order in which this card's torch takes them
SECONDS = {"cudnn": 3.0, "flash": 2.0, "efficient": 1.0}
ON = {
    "flash": torch.backends.cuda.flash_sdp_enabled,
    "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
    "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
    "math": torch.backends.cuda.math_sdp_enabled,
}


class Card:
    """CUDA's attention by its switches. `faults`: kernel → what it does instead."""

    def __init__(self, **faults):
        self.faults, self.ran, self.seconds, self.timed = faults, [], dict(SECONDS), 0

    def attention(self, query, key, value):
        name = next((name for name in KERNELS if ON[name]()), "math")
        self.ran.append((name, len(query)))
        if name in self.faults:
            return self.faults[name](query, key, value)
        return by_math(query, key, value)

    def measure(self, run):
        self.timed += 1
        self.ran.clear()
        run()
        return self.seconds[self.ran[-1][0]]


def by_math(query, key, value):
    scores = torch.softmax(query.float() @ key.float().mT * query.shape[3] ** -0.5, dim=-1)
    return (scores @ value.float()).to(query.dtype)


def raises(query, key, value):
    warnings.warn("head_dim should be no more than 128", stacklevel=1)
    raise RuntimeError("No available kernel. Aborting execution.")


def leaves_a_key_out(query, key, value):
    return by_math(query, key[:, :, :-1], value[:, :, :-1])


def swaps_rows(query, key, value):
    return by_math(query, key, value).flip(0)


def no_numbers_in_one_head(query, key, value):
    out = by_math(query, key, value)
    out[-1, 0] = torch.nan  # neither the first nor the last
    return out


def loses_the_card(query, key, value):
    raise torch.AcceleratorError("an illegal memory access was encountered")


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A function that gives this process a card with faults; a second call is a new start of the engine."""

    def become(*, path=tmp_path / choices.FILE, **faults):
        made = Card(**faults)
        monkeypatch.setattr(F, "scaled_dot_product_attention", made.attention)
        monkeypatch.setattr(fused_attention, "device_seconds", made.measure)
        choices.use(Choices(path, machine="a card") if path else Choices())
        trials.use(Trials(tmp_path / trials.FILE))
        return made

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    yield become
    choices.use(Choices())
    trials.use(Trials())
    fused_attention._chosen.clear()


def to_itself(tokens=96, heads=2, width=40, dtype=torch.float16):
    """Query, key and value of one row, as a UNet has them: parts of one product."""
    product = torch.randn(1, tokens, 3 * heads * width, dtype=dtype)
    return product.view(1, tokens, 3, heads, width).permute(2, 0, 3, 1, 4).unbind()


def to_a_text(tokens=96, heads=2, width=40, dtype=torch.float16):
    """The same with a text: keys and values are a slice of those of all layers."""
    query = torch.randn(1, tokens, heads * width, dtype=dtype).view(1, tokens, heads, width).transpose(1, 2)
    known = torch.randn(1, 77, 5 * 2 * heads * width, dtype=dtype).split(2 * heads * width, dim=2)[3]
    return query, *known.view(1, 77, 2, heads, width).permute(2, 0, 3, 1, 4).unbind()


SHAPES = pytest.mark.parametrize("make", [to_itself, to_a_text])


@SHAPES
def test_the_fastest_kernel_is_taken_for_the_rows_for_which_it_was_timed(make, card):
    made, given = card(), make()

    fused_attention.choose([given], [2, 1])

    for rows, kernel in ((1, "efficient"), (2, "efficient"), (3, "cudnn")):
        made.ran.clear()
        fused_attention.attention(*fused_attention.repeated(given, rows))
        assert made.ran == [(kernel, rows)]
    assert all(on() for on in ON.values())


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_what_is_timed_is_laid_out_as_what_was_given(make, dtype):
    given = make(dtype=dtype)

    several = fused_attention.repeated(given, 3)

    for one, more in zip(given, several, strict=True):
        assert more.shape == (3, *one.shape[1:])
        assert (more.dtype, more.stride()[1:], more.storage_offset()) == (dtype, one.stride()[1:], one.storage_offset())
        assert not torch.equal(more[0], more[1])
    shared = [len({tensor.untyped_storage().data_ptr() for tensor in each}) for each in (given, several)]
    assert shared[0] == shared[1]
    assert several[0].stride(0) == given[0].untyped_storage().nbytes() // dtype.itemsize


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (raises, "head_dim should be no more than 128; RuntimeError: No available kernel. Aborting execution."),
        (leaves_a_key_out, "wrong by"),
        (swaps_rows, "wrong by"),
        (no_numbers_in_one_head, "wrong by nan"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_kernel_that_fails_or_is_wrong_is_left_out_with_its_reason(fault, reason, dtype, card, caplog):
    caplog.set_level(logging.DEBUG)
    given, made = to_itself(dtype=dtype), card(efficient=fault)

    fused_attention.choose([given], [2])
    made.ran.clear()
    fused_attention.attention(*fused_attention.repeated(given, 2))

    assert made.ran == [("flash", 2)]
    (said,) = [record for record in caplog.records if "not efficient" in record.message]
    assert said.levelno == logging.DEBUG
    assert reason in said.message


def test_what_torch_itself_takes_is_not_taken_if_it_is_wrong(card):
    given, made = to_a_text(), card(cudnn=leaves_a_key_out)
    made.seconds = {"cudnn": 1.0, "flash": 2.0, "efficient": 3.0}

    fused_attention.choose([given], [1])

    assert fused_attention.chosen(*given[:2]) == "flash"


def test_where_all_is_wrong_torch_decides_and_that_is_said(card, caplog):
    given, _ = to_itself(), card(cudnn=raises, flash=raises, efficient=leaves_a_key_out)

    fused_attention.choose([given], [1])

    assert fused_attention.chosen(*given[:2]) == "torch"
    assert "none can be used; going on with torch" in caplog.text


@pytest.mark.parametrize(("seconds", "kernel"), [(2.9, "torch"), (2.8, "flash")])
def test_another_kernel_than_torchs_must_be_faster_by_a_twentieth(seconds, kernel, card):
    given, made = to_itself(), card()
    made.seconds = {"cudnn": 3.0, "flash": seconds, "efficient": 3.0}

    fused_attention.choose([given], [1])

    assert fused_attention.chosen(*given[:2]) == kernel


def test_a_restart_changes_no_kernel_though_timing_would(card, tmp_path):
    given, _ = to_itself(), card()
    fused_attention.choose([given], [1])
    again = card()
    again.seconds = {"cudnn": 1.0, "flash": 2.0, "efficient": 3.0}

    fused_attention.choose([given], [1])

    assert fused_attention.chosen(*given[:2]) == "efficient"
    assert again.timed == 0
    assert again.ran == []
    question = "attention float16, 2 heads of 40, 96 to 96, rows 1"
    assert json.loads((tmp_path / choices.FILE).read_text()) == {"a card": {question: "efficient"}}


def test_without_a_file_nothing_is_timed_and_torch_decides(card):
    given, made = to_itself(), card(path=None)

    fused_attention.choose([given], [2, 1])

    assert made.ran == []
    assert fused_attention._chosen == {}


def test_a_model_that_is_loaded_next_keeps_no_kernel_of_the_one_before(card):
    given = to_itself()
    card()
    fused_attention.choose([given], [1])
    card(path=None)

    fused_attention.choose([given], [1])

    assert fused_attention.chosen(*given[:2]) == "torch"


def test_a_kernel_that_loses_the_card_is_tried_twice_and_never_again(card, caplog):
    caplog.set_level(logging.DEBUG)
    given = to_itself()
    for _ in range(2):
        card(efficient=loses_the_card)
        with pytest.raises(torch.AcceleratorError):
            fused_attention.choose([given], [1])
    card(efficient=loses_the_card)

    fused_attention.choose([given], [1])

    assert fused_attention.chosen(*given[:2]) == "flash"
    assert "it ended engines; to try again, delete kernel-trials.json" in caplog.text


def test_switches_are_on_again_after_a_kernel_that_fails(card):
    card(efficient=loses_the_card)

    with pytest.raises(torch.AcceleratorError):
        fused_attention.by("efficient", *to_itself())

    assert all(on() for on in ON.values())


def test_attention_of_each_size_is_noted_once_and_computed():
    given, text = to_itself(dtype=torch.float32), to_a_text(dtype=torch.float32)

    with fused_attention.Noted() as noted:
        outs = [attention.attend(*each) for each in (given, text, to_itself(dtype=torch.float32))]

    assert [each[0] for each in noted.given.values()] == [given[0], text[0]]
    assert torch.equal(outs[0], plain(*given))


def test_a_device_is_timed_from_event_to_event_behind_a_sleep_that_hides_launches(monkeypatch):
    happened = []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self):
            happened.append("event")

        def synchronize(self):
            happened.append("wait")

        def elapsed_time(self, end):
            return 2.0 + (len(happened) < 6)  # milliseconds; the first run is slower

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: happened.append("sleep"))

    seconds = fused_attention.device_seconds(functools.partial(happened.append, "run"))

    assert seconds == 0.002
    assert happened[:5] == ["sleep", "event", "run", "event", "wait"]

"""Work on pictures beside denoising steps: no missing wait between streams, and the same pictures."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.device import streams
from pipelines.device.torch_backend import TorchBackend
from pipelines.engine.backend import HostEvent
from pipelines.engine.request import Image, Request
from pipelines.engine.stages import Stages
from pipelines.messages import EngineConfig, GenerationParams, Work
from pipelines.model.lcm import Lcm
from tests.device.test_cuda_graphs import FakeDevice, capture
from tests.support import strict_meta_device, tiny_models
from tests.support.stream_races import HOST, Careless, Forgetful, Race, Stream, Witness
from tests.support.strict_meta_device import NOWHERE

PIXELS = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)
REQUESTS = {
    "a": GenerationParams(prompt="a beach", seed=1, num_inference_steps=3),
    "b": GenerationParams(prompt="a city", seed=2, num_inference_steps=4, guidance_scale=2.0, negative_prompt="grey"),
    "c": GenerationParams(prompt="a beach", seed=3, num_inference_steps=2),
}


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch):
    """oneDNN's weights are no storages that a witness could know."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


def begin(model, name):
    params = REQUESTS[name]
    return model.encode([(params, model.prepare(params), PIXELS, params.seed)])[0]


def draw(model, trajectories):
    pixels = model.decode(trajectories)
    return model.fetch(pixels, model.finite(trajectories), model.check(pixels))


def interleaved(model):
    """Three requests that join, leave and show previews while others take steps; nothing is waited for but at last."""
    a = begin(model, "a")
    model.step([a])
    b = begin(model, "b")
    model.step([a])
    preview = draw(model, [a])
    model.step([a, b])
    picture_a = draw(model, [a])
    c = begin(model, "c")
    model.step([b, c])
    del a
    model.step([b, c])
    picture_c = draw(model, [c])
    model.step([b])
    picture_b = draw(model, [b])
    return [wait() for wait in (picture_b, preview, picture_c, picture_a)]


def model_under(witness, steps=None, pictures=None, device=None):
    model = TorchBackend(
        tiny_models.make(safety_checker=tiny_models.safety_checker(threshold=0.3)),
        its_streams=(witness.stream("steps", steps), witness.stream("pictures", pictures)),
    )
    return capture(model, device, 2) if device else model


@pytest.mark.parametrize("captures", [False, True], ids=["as it is", "captured"])
def test_pictures_beside_steps_are_those_that_are_made_alone(captures):
    expected = interleaved(TorchBackend(tiny_models.make(safety_checker=tiny_models.safety_checker(threshold=0.3))))

    with Witness() as witness:
        actual = interleaved(model_under(witness, device=FakeDevice() if captures else None))

    for (pixels, finite, unsafe), (pixels_alone, finite_alone, unsafe_alone) in zip(actual, expected, strict=True):
        assert np.abs(pixels.astype(int) - pixels_alone.astype(int)).max() <= (1 if captures else 0)
        assert (finite, unsafe) == (finite_alone, unsafe_alone)


@pytest.mark.parametrize("which", ["steps", "pictures"])
@pytest.mark.parametrize(("kind", "words"), [(Careless, "not written yet"), (Forgetful, "give it to others")])
def test_a_stream_that_does_not_wait_or_does_not_hold_on_is_noticed(which, kind, words):
    with Witness() as witness:
        model = model_under(witness, **{which: kind})

        with pytest.raises(Race, match=words):
            interleaved(model)


def test_what_is_read_before_it_arrives_is_nonsense():
    with Witness() as witness:
        model = model_under(witness)
        a = begin(model, "a")
        wait = draw(model, [a])
        before = [host.numpy().copy() for host, _ in model._pictures.under_way]
        arrived, *_ = wait()

    assert (before[0] == 77).all()
    assert not (arrived == 77).all()


def test_a_stage_that_looks_at_a_number_on_the_device_is_noticed():
    class Looks(Lcm):
        def decode(self, trajectories):
            pixels = super().decode(trajectories)
            return pixels if pixels.sum().item() else None

    class LooksInAStream(TorchBackend, Looks):
        pass

    with Witness() as witness:
        model = LooksInAStream(tiny_models.make(), its_streams=(witness.stream("steps"), witness.stream("pictures")))

        with pytest.raises(Race, match="waits for the host"):
            interleaved(model)


def test_graphs_of_both_streams_in_one_are_noticed():
    with Witness() as witness:
        model = model_under(witness, device=FakeDevice())
        decode, latents = model.calls.decode, torch.zeros(1, 4, 8, 8)
        with model._pictures.use(), torch.inference_mode():
            decode(latents)

        with pytest.raises(Race), model._steps.use(), torch.inference_mode():
            decode(latents)


def test_a_step_returns_when_the_one_before_is_done():
    with Witness() as witness:
        model = model_under(witness)
        b = begin(model, "b")
        events = []
        for _ in range(3):
            model.step([b])
            events.append(model._ahead[-1])

    assert [event.passed for event in events] == [True, True, False]


def test_a_trajectory_is_ready_once_it_is_encoded():
    with Witness() as witness:
        model = model_under(witness)
        a = begin(model, "a")
        before = a.ready
        a.begun.wait()

    assert (before, a.ready) == (False, True)


def test_memory_that_the_host_writes_again_must_have_been_read():
    """The witness itself: the host may not touch what a stream has not been waited for."""
    with Witness() as witness:
        stream = Stream(witness, "steps")
        given = torch.ones(3)
        with stream.use():
            made = given * 2

        with pytest.raises(Race, match="still in use"):
            given.add_(1)
        stream.record_event().wait()
        given.add_(1)

    assert witness.now == HOST
    assert made.tolist() == [2, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.long)])
@pytest.mark.parametrize("make_vae", [tiny_models.vae, tiny_models.tiny_vae])
def test_no_stage_reads_a_number_on_the_device_or_takes_one_from_elsewhere(dtype, make_vae):
    """On a device that has no numbers: so nothing waits for them, and all of it can be captured."""
    made = tiny_models.make(vae=make_vae(), safety_checker=tiny_models.safety_checker())
    parts = {
        name: getattr(made, name).to(dtype).to(NOWHERE) for name in ("unet", "vae", "text_encoder", "safety_checker")
    }

    with strict_meta_device.device():
        lcm = Lcm(replace(made, device=NOWHERE, dtype=dtype, **parts))
        trajectories = lcm.encode([(params, lcm.prepare(params), PIXELS, params.seed) for params in REQUESTS.values()])
        lcm.step(trajectories)
        pixels = lcm.decode(trajectories)
        flags = lcm.finite(trajectories), lcm.check(pixels)

    held = [tensor for trajectory in trajectories for tensor in (*trajectory.tensors, trajectory.denoised)]
    assert {tensor.device for tensor in (*held, pixels, *flags)} == {NOWHERE}
    assert {tensor.dtype for tensor in trajectories[0].contexts + trajectories[0].shifts} == {dtype}


def test_a_device_that_does_one_thing_at_a_time_has_one_stream():
    steps, pictures = streams.streams_for(torch.device("cpu"))
    tensor = torch.ones(3)

    assert steps is pictures
    assert steps.to_host(tensor) is tensor
    assert steps.record_event().passed
    assert not TorchBackend(tiny_models.make()).overlaps


def test_on_cuda_steps_go_before_pictures(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: SimpleNamespace(priority=priority))

    steps, pictures = streams.streams_for(torch.device("cuda"))

    assert steps._stream.priority < pictures._stream.priority == 0  # 0 is CUDA's lowest


@pytest.mark.parametrize(("kind", "waits"), [("mps", 1), ("cpu", 0)])
def test_an_event_that_has_passed_was_waited_for_on_a_device_that_runs_behind(kind, waits, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(1))
    stream, _ = streams.streams_for(torch.device(kind))

    event = stream.record_event()

    assert event.passed
    assert len(waited) == waits


# --- timings ---------------------------------------------------------------------------------------------------------


class Clocked(streams.HostStream):
    """A stream on which work takes the seconds that `work` says; `done`: when it has done all that was submitted."""

    now = None  # the stream that is in use

    def __init__(self):
        super().__init__(lambda: None)
        self.done = 0.0

    @contextlib.contextmanager
    def use(self):
        before, Clocked.now = Clocked.now, self
        try:
            yield
        finally:
            Clocked.now = before

    def record_event(self):
        return HostEvent(self.done)

    def wait_event(self, event, *tensors):
        self.done = max(self.done, event.moment)


def taking(seconds, run):
    """The function, on a stream that is busy with it for so long."""

    def call(*inputs):
        Clocked.now.done += seconds
        return run(*inputs)

    return call


def timings_of(its_streams):
    """What a request of three steps says of its stages: an encode of 3 s, steps of 5 s, a decode of 7 s."""
    model = TorchBackend(tiny_models.make())
    made = replace(
        model.functions,
        unet=taking(5.0, model.functions.unet),
        vae_encode=taking(3.0, model.functions.vae_encode),
        vae_decode=taking(7.0, model.functions.vae_decode),
    )
    ended = []
    readback = SimpleNamespace(finish=lambda images, pictures: ended.append(pictures()))
    backend = TorchBackend(model.model, made, its_streams)
    stages = Stages(EngineConfig(model="", data_dir=""), backend, readback, lambda *_: None, lambda *_: None)
    request = Request(Work(id="a", params=REQUESTS["a"], image=b""), 0.0, pixels=PIXELS)
    request.images = [Image(request, start=1)]
    stages.prepare(request)
    stages.encode(request.images)
    for _ in range(3):
        stages.step(request.images)
    stages.decode(request.images)
    request.time()
    return dict(request.timings)


def test_what_a_stage_waits_for_another_stream_is_no_time_of_its_own():
    timings = timings_of((Clocked(), Clocked()))

    # The first step waits for the encoder, then the decoder for all steps.
    assert timings == {"text": 0, "encode": 3, "steps": 15, "decode": 7, "safety": 0, "wait": 3 + 15}


def test_where_there_is_one_stream_there_is_no_wait():
    alone = Clocked()

    assert timings_of((alone, alone)) == {"text": 0, "encode": 3, "steps": 15, "decode": 7, "safety": 0}

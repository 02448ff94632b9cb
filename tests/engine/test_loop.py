"""The loop: requests join and leave between steps, and what goes wrong with one stays with that one."""

import contextlib
import gc
import itertools
import queue
import threading
import time
import weakref

import numpy as np
import pytest

from pipelines.device.torch_backend import TorchBackend
from pipelines.engine.instant import InstantBackend
from pipelines.engine.loop import BEAT_TIMES, BeatTimes, Engine
from pipelines.errors import NoRoomError
from pipelines.images.codec import ImageFault, LargePicture
from pipelines.images.decoder_process import DecoderError, DecoderLimits, Unwanted
from pipelines.messages import (
    Beat,
    Cancelled,
    Decoded,
    EngineConfig,
    Failed,
    Generated,
    GenerationParams,
    Large,
    Log,
    Preview,
    Priority,
    Started,
    Work,
)
from tests.support import tiny_models
from tests.support.faulty_engine import SECRET, DeviceLost, FaultyModel

WAIT_S = 30.0

# More than any test lasts: a request of that number of steps stays until it is cancelled.
FOREVER = 100_000


class RawCodec:
    """Pictures as raw bytes: "64x48:7" is 64 wide, 48 high, every level 7; what comes out is the bare levels."""

    def decode(self, data):
        if data == b"bad":
            raise ImageFault("image_load_error", "It is bad.", {"why": "test"})
        if data == b"bug":
            raise ZeroDivisionError
        if data == b"large":
            raise LargePicture(alone=True)
        size, _, level = data.decode().partition(":")
        width, height = map(int, size.split("x"))
        return np.full((height, width, 3), int(level or 0), np.uint8)

    def encode(self, pixels):
        return pixels.tobytes()


class SlowAtFirst(RawCodec):
    """Takes its time with the first picture that it encodes."""

    def __init__(self):
        self._calls = itertools.count()

    def encode(self, pixels):
        if next(self._calls) == 0:
            time.sleep(0.1)
        return super().encode(pixels)


class FailsAtFirst(RawCodec):
    """Can't encode the first picture."""

    def __init__(self):
        self._calls = itertools.count()

    def encode(self, pixels):
        if next(self._calls) == 0:
            raise ZeroDivisionError(SECRET)
        return super().encode(pixels)


class HeldUp(RawCodec):
    """Encodes when it is let."""

    def __init__(self):
        self.asked, self.let = threading.Event(), threading.Event()

    def encode(self, pixels):
        self.asked.set()
        assert self.let.wait(WAIT_S)
        return super().encode(pixels)


class HeldUpDecoders:
    """Decoders that decode when they are let, or when they are stopped; "bug" is a picture that ends them."""

    limits = DecoderLimits(count=1)

    def __init__(self):
        self.asked, self.let, self.closed = threading.Event(), threading.Event(), threading.Event()

    def decode(self, name, data, wanted, *, alone):
        self.asked.set()
        assert self.let.wait(WAIT_S)
        if not wanted():
            raise Unwanted
        if data == b"bug":
            raise DecoderError(SECRET)
        return np.zeros((64, 64, 3), np.uint8)

    def stop(self, name):
        self.let.set()

    def close(self):
        self.closed.set()


class Watched(FaultyModel):
    """Notes who shared each step; takes a millisecond for it, so that others can join."""

    def __init__(self, seconds=0.0):
        super().__init__(seconds)
        self.batches = []

    def step(self, trajectories):
        self.batches.append([image.prompt for image in trajectories])
        assert len({image.pixels.shape for image in trajectories}) == 1
        time.sleep(0.001)
        super().step(trajectories)


class Talk:
    """A running engine and what it says. Messages other than beats are kept in order, for each request by itself."""

    def __init__(self, model, config, codec=None, beat_times=BEAT_TIMES, decoders=None):
        self._said = queue.SimpleQueue()
        self.of = {}
        self.beats = []
        self.engine = Engine(
            config, model, codec or RawCodec(), self._said.put, beat_times=beat_times, decoders=decoders
        )
        self.fault = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        try:
            self.engine.run()
        except DeviceLost as error:
            self.fault = error

    def ask(
        self, request_id, *, image=b"64x64", priority=Priority.RUN, tenant="", previews=False, large=False, **params
    ):
        params = GenerationParams(**{"prompt": request_id, "seed": 1} | params)
        options = {"priority": priority, "tenant": tenant, "previews": previews, "large": large}
        self.engine.submit(Work(id=request_id, params=params, image=image, **options))

    def hear(self):
        message = self._said.get(timeout=WAIT_S)
        if isinstance(message, Beat):
            self.beats.append(message)
        else:
            self.of.setdefault(message.id, []).append(message)
        return message

    def until(self, request_id, kind=(Large, Generated, Failed, Cancelled)):
        """The first message of this kind about a request."""
        while True:
            for message in self.of.get(request_id, []):
                if isinstance(message, kind):
                    return message
            self.hear()

    def ends(self, *request_ids):
        return [self.until(request_id) for request_id in request_ids]

    def end(self):
        self.engine.drain()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def talk_with(model, codec=None, beat_times=BEAT_TIMES, decoders=None, **config):
    talk = Talk(model, EngineConfig(model="test", data_dir="", **config), codec, beat_times, decoders)
    try:
        yield talk
    finally:
        talk.end()


@pytest.fixture
def model():
    return Watched()


@pytest.fixture
def talk(model):
    with talk_with(model) as talk:
        yield talk


def test_an_answer_has_every_picture_and_its_size(talk):
    talk.ask("a", image=b"64x48:7", num_images=3)

    answer = talk.until("a")
    assert [(p.width, p.height, p.nsfw, p.data) for p in answer.pictures] == [(64, 48, False, b"\7" * 64 * 48 * 3)] * 3


def test_an_answer_says_where_the_time_went(talk):
    talk.ask("a", previews=True)

    timings = talk.until("a").timings
    assert timings.keys() == {
        *("inference", "queue", "decode_image", "noise", "text", "encode"),
        *("steps", "decode", "safety", "preview", "encode_jpeg"),
    }
    assert 0 < timings["steps"] <= timings["inference"]


class Drawing(FaultyModel):
    """A model that notes which thread draws, and what `encode` is given."""

    def __init__(self):
        super().__init__()
        self.threads, self.given, self.drawn, self.held = set(), [], [], []

    def draw(self, params, pixels, seed):
        self.threads.add(threading.current_thread().name.partition("_")[0])
        noise = frozenset({f"noise of {seed}"})
        self.drawn.append(weakref.ref(noise))
        return noise

    def encode(self, items):
        self.given += [text for *_, start in items for text in start]
        return super().encode(items)

    def decode(self, trajectories):
        gc.collect()
        self.held += [noise for noise in self.drawn if noise() is not None]
        return super().decode(trajectories)


def test_noise_is_drawn_where_pictures_are_decoded():
    model = Drawing()
    with talk_with(model) as talk:
        talk.ask("a", seed=7, num_images=2)
        talk.until("a")

    assert model.threads == {"decode"}
    assert model.given == ["noise of 7", "noise of 8"]
    assert not model.held  # once its picture is encoded


def test_a_request_is_announced_before_its_answer(talk):
    talk.ask("a")

    talk.until("a")
    assert [type(message) for message in talk.of["a"]] == [Started, Generated]


def test_requests_join_and_leave_between_steps(talk, model):
    talk.ask("long", num_inference_steps=FOREVER)
    talk.until("long", Started)
    talk.ask("short", num_inference_steps=2)

    talk.until("short")
    talk.engine.cancel("long")
    assert model.batches.count(["long", "short"]) == 2
    assert model.batches[0] == ["long"]


def test_images_of_different_sizes_never_share_a_step(talk, model):
    sizes = [b"64x64", b"64x72", b"72x64"] * 3
    for number, size in enumerate(sizes):
        talk.ask(str(number), image=size)

    answers = talk.ends(*map(str, range(len(sizes))))  # the model asserts that it gets one size
    assert all(isinstance(answer, Generated) for answer in answers)


@pytest.mark.parametrize(("guidance", "images"), [(1.0, 4), (3.0, 2)])
def test_a_step_has_no_more_rows_than_allowed(guidance, images):
    model = Watched()
    with talk_with(model, max_batch=4) as talk:
        for number in range(6):
            talk.ask(str(number), num_images=3, guidance_scale=guidance)
        talk.ends(*map(str, range(6)))

    assert max(map(len, model.batches)) == images


def test_an_engine_without_work_gives_memory_back_once_until_it_has_worked_again():
    class Resting(InstantBackend):
        def rest(self):
            rests.put(time.monotonic())

    rests = queue.SimpleQueue()
    with talk_with(Resting(0.0), beat_times=BeatTimes(idle_s=0.01)) as talk:
        first = rests.get(timeout=10)
        time.sleep(0.1)  # ten times as long as it takes to rest
        assert rests.empty()
        talk.ask("a")
        talk.until("a")
        assert rests.get(timeout=10) > first


def test_an_engine_without_work_is_asked_again_and_again_what_it_could_do():
    class Idle(InstantBackend):
        def idle(self, seconds):
            idles.put(seconds)

    idles = queue.SimpleQueue()
    with talk_with(Idle(0.0), beat_times=BeatTimes(idle_s=0.01)) as talk:
        before = [idles.get(timeout=10)]
        while before[-1] < 1.0:
            before.append(idles.get(timeout=10))
        talk.ask("a")
        talk.until("a")
        while not idles.empty():
            idles.get()
        after = idles.get(timeout=10)

    assert before == sorted(set(before))
    assert after < before[-1]


def test_strength_zero_needs_no_step():
    with talk_with(TorchBackend(tiny_models.make())) as talk:
        talk.ask("a", image=b"64x64:128", strength=0.0)
        answer = talk.until("a")

    assert len(answer.pictures) == 1


def test_an_urgent_request_overtakes_those_on_the_device(talk):
    background = [f"low {number}" for number in range(20)]
    for request_id in background:
        talk.ask(request_id, priority=Priority.LOW, num_inference_steps=FOREVER)
    talk.until("low 7", Started)  # the device is full
    talk.ask("frame", priority=Priority.REALTIME)

    assert isinstance(talk.until("frame"), Generated)
    for request_id in background:
        talk.engine.cancel(request_id)


def test_a_bad_picture_fails_its_own_request(talk):
    talk.ask("good")
    talk.ask("bad", image=b"bad")

    good, bad = talk.ends("good", "bad")
    assert isinstance(good, Generated)
    assert bad == Failed(id="bad", kind="image_load_error", message="It is bad.", ctx={"why": "test"})


def test_a_fault_of_the_codec_fails_its_own_request(talk):
    talk.ask("good")
    talk.ask("bug", image=b"bug")

    good, bug = talk.ends("good", "bug")
    assert (type(good), bug.kind) == (Generated, "engine_error")


@pytest.mark.parametrize(
    ("prompt", "kind"), [("raise", "engine_error"), ("nan", "bad_output"), ("huge", "out_of_memory")]
)
def test_only_the_culprit_of_a_failed_batch_fails(talk, model, prompt, kind):
    talk.ask("neighbour", num_inference_steps=500)
    talk.until("neighbour", Started)
    for request_id in ("first", "second", prompt):
        talk.ask(request_id)

    culprit, *others = talk.ends(prompt, "neighbour", "first", "second")
    assert culprit.kind == kind
    assert [type(message) for message in others] == [Generated] * 3
    assert any(prompt in batch and len(batch) > 1 for batch in model.batches)


class Overflowing(Watched):
    """A model whose pictures are no numbers, but for those that are decoded exactly; `worse`: not even those."""

    def __init__(self, *, worse=False):
        super().__init__()
        self.worse, self.exactly = worse, []

    def decode(self, trajectories):
        for image in trajectories:
            image.prompt = "nan"
        return super().decode(trajectories)

    def decode_exactly(self, trajectories):
        self.exactly.append(len(trajectories))
        for image in trajectories:
            image.prompt = "nan" if self.worse else "fine"
        return super().decode(trajectories)


def test_a_picture_that_is_no_numbers_is_decoded_once_more_exactly():
    model = Overflowing()
    with talk_with(model) as talk:
        talk.ask("a", image=b"64x48:7", num_images=3)

        answer = talk.until("a")

    assert [picture.data for picture in answer.pictures] == [b"\7" * 64 * 48 * 3] * 3
    assert model.exactly == [1, 1, 1]


def test_a_picture_that_is_no_numbers_either_time_fails():
    model = Overflowing(worse=True)
    with talk_with(model) as talk:
        talk.ask("a")

        assert talk.until("a").kind == "bad_output"
    assert model.exactly == [1]


def test_out_of_memory_halves_the_batch_and_is_remembered(model):
    with talk_with(model) as talk:
        talk.ask("hungry", num_images=8)
        answer = talk.until("hungry")

    sizes = [len(batch) for batch in model.batches]
    assert sizes[:15] == [8, 4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1]
    assert set(sizes[15:]) == {1}
    assert len(answer.pictures) == 8


def test_faults_are_logged_without_their_words(talk, caplog):
    talk.ask("raise")

    talk.until("raise")
    assert "ValueError" in caplog.text
    assert SECRET not in caplog.text


def test_a_lost_device_ends_the_loop(model):
    talk = Talk(model, EngineConfig(model="test", data_dir=""))
    talk.ask("lost")
    talk.end()

    assert isinstance(talk.fault, DeviceLost)


def test_a_cancelled_request_stops_at_its_next_step_and_others_go_on(talk, model):
    talk.ask("stays", num_inference_steps=200)
    talk.ask("goes", num_inference_steps=FOREVER)
    talk.until("goes", Started)
    talk.engine.cancel("goes")

    goes, stays = talk.ends("goes", "stays")
    assert (type(goes), type(stays)) == (Cancelled, Generated)


def test_a_request_that_still_waits_can_be_cancelled(talk):
    for number in range(10):
        talk.ask(f"long {number}", num_inference_steps=FOREVER)
    talk.ask("waits")
    talk.engine.cancel("waits")

    assert isinstance(talk.until("waits"), Cancelled)
    assert [type(message) for message in talk.of["waits"]] == [Cancelled]
    for number in range(10):
        talk.engine.cancel(f"long {number}")


def test_cancelling_what_is_not_there_is_nothing(talk):
    talk.engine.cancel("unknown")
    talk.ask("a")

    assert isinstance(talk.until("a"), Generated)


def test_previews_come_in_order_and_before_the_answer(talk):
    talk.ask("a", previews=True, num_inference_steps=30, num_images=2)

    talk.until("a")
    *before, last = talk.of["a"]
    previews = [message for message in before if isinstance(message, Preview)]
    assert isinstance(last, Generated)
    assert previews
    assert all(1 <= preview.step < preview.steps == 30 for preview in previews)
    assert [preview.step for preview in previews] == sorted({preview.step for preview in previews})


def test_a_slow_preview_does_not_come_after_the_answer(model):
    with talk_with(model, SlowAtFirst()) as talk:
        talk.ask("a", previews=True, num_inference_steps=2)
        talk.until("a")

    assert [type(message) for message in talk.of["a"]] == [Started, Preview, Generated]


class Sightless(Watched):
    """Has no memory for pictures before they are done."""

    def decode(self, trajectories):
        if not all(image.finished for image in trajectories):
            raise MemoryError(SECRET)
        return super().decode(trajectories)


@pytest.mark.parametrize(("kind", "codec"), [(Watched, FailsAtFirst), (Sightless, RawCodec)])
def test_a_preview_that_can_not_be_made_costs_the_request_nothing_but_previews(kind, codec, caplog):
    with talk_with(kind(), codec()) as talk:
        talk.ask("a", previews=True, num_inference_steps=30)
        talk.until("a")

    assert [type(message) for message in talk.of["a"]] == [Started, Generated]
    assert caplog.text.count("stage preview failed") == 1
    assert SECRET not in caplog.text


def test_no_preview_comes_after_the_last_word(model):
    codec = HeldUp()
    with talk_with(model, codec) as talk:
        talk.ask("a", previews=True, num_inference_steps=FOREVER)
        assert codec.asked.wait(WAIT_S)
        talk.engine.cancel("a")
        talk.until("a", Cancelled)
        codec.let.set()
    while not talk._said.empty():
        talk.hear()

    assert [type(message) for message in talk.of["a"]] == [Started, Cancelled]


def test_unsafe_pictures_are_black_and_so_are_their_previews(talk):
    talk.ask("a", image=b"64x64:255", previews=True)

    answer = talk.until("a")
    shown = [*answer.pictures, *(message.picture for message in talk.of["a"] if isinstance(message, Preview))]
    assert len(shown) > 1
    assert all(picture.nsfw and not any(picture.data) for picture in shown)


@pytest.mark.parametrize("forced", [False, True])
def test_the_safety_checker_can_be_left_out_unless_it_is_forced(model, forced):
    with talk_with(model, force_safety_checks=forced) as talk:
        talk.ask("a", image=b"64x64:255", enable_safety_checks=False)
        talk.ask("b", image=b"64x64:255", enable_safety_checks=True)
        unchecked, checked = talk.ends("a", "b")

    assert (unchecked.pictures[0].nsfw, checked.pictures[0].nsfw) == (forced, True)


def test_an_idle_engine_beats_and_patience_covers_the_next_stage(talk):
    first = talk.hear()
    talk.ask("a")

    talk.until("a")
    assert (first.stage, first.running) == ("idle", ())
    assert talk.beats[1].allow_s > 0


def test_the_log_of_a_request_counts_tokens_and_quotes_nothing():
    with talk_with(TorchBackend(tiny_models.make())) as talk:
        talk.ask("a", image=b"64x64:128", prompt="sunset over the sea")
        talk.until("a")

    logs = [message.message for message in talk.of["a"] if isinstance(message, Log)]
    assert len(logs) == 1
    assert "tokens" in logs[0]
    assert "sunset" not in logs[0]


def test_draining_finishes_what_is_unfinished(model):
    talk = Talk(model, EngineConfig(model="test", data_dir=""))
    for number in range(30):
        talk.ask(str(number))
    talk.end()

    answers = talk.ends(*map(str, range(30)))
    assert all(isinstance(answer, Generated) for answer in answers)


def test_every_request_has_one_last_word(model):
    talk = Talk(model, EngineConfig(model="test", data_dir=""))
    fates = ["raise", "nan", "huge", "hungry", "fine", "cancel"] * 6
    for number, fate in enumerate(fates):
        talk.ask(str(number), prompt=fate, num_images=1 + number % 3, image=b"bad" if number % 7 == 0 else b"64x64")
        if fate == "cancel":
            talk.engine.cancel(str(number))
    talk.end()
    talk.ends(*map(str, range(len(fates))))

    last_words = [[m for m in said if isinstance(m, Generated | Failed | Cancelled)] for said in talk.of.values()]
    assert [len(words) for words in last_words] == [1] * len(fates)
    assert all(said[-1] is words[0] for said, words in zip(talk.of.values(), last_words, strict=True))


def test_a_warm_engine_has_been_through_every_stage_and_says_nothing():
    said = []
    engine = Engine(EngineConfig(model="test", data_dir=""), TorchBackend(tiny_models.make()), RawCodec(), said.append)

    engine.warm_up(64)

    assert {message.stage for message in said} <= {"text", "encode", "steps", "decode", "safety"}
    assert all(isinstance(message, Beat) for message in said)


@pytest.mark.parametrize(("fault", "raised"), [(MemoryError, NoRoomError), (ValueError, ValueError)])
def test_a_warm_up_that_has_no_room_is_told_from_one_that_fails(fault, raised):
    class CanNotDecode(FaultyModel):
        def decode(self, trajectories):
            raise fault("cuda")

    config = EngineConfig(model="test", data_dir="", device="cuda")
    engine = Engine(config, CanNotDecode(), RawCodec(), lambda message: None)

    with pytest.raises(raised, match="cuda"):
        engine.warm_up(64)


# Of one picture, alone and among others: steps, strengths and guidance all differ, so members stand at different
# timesteps and leave at different times.
MIXED = [
    {"seed": 7, "num_inference_steps": 4, "strength": 0.8},
    {"seed": 8, "num_inference_steps": 8, "strength": 1.0, "guidance_scale": 3.0, "negative_prompt": "grey"},
    {"seed": 9, "num_inference_steps": 2, "strength": 0.3},
    {"seed": 10, "num_inference_steps": 12, "strength": 0.6, "guidance_scale": 7.5},
    {"seed": 11, "num_inference_steps": 1, "strength": 0.5, "num_images": 3},
    {"seed": 12, "num_inference_steps": 6, "strength": 0.9},
]


class Counted(TorchBackend):
    """Notes how many shared each step."""

    def __init__(self, model):
        super().__init__(model)
        self.sizes = []

    def step(self, trajectories):
        self.sizes.append(len(trajectories))
        super().step(trajectories)


# --- pictures that take their time, beside the steps of others --------------------------------------------------------


class LatePictures(Watched):
    """Pictures arrive when they are let in; what cannot be had makes waiting for them fail."""

    def __init__(self):
        super().__init__()
        self.let_in, self.fault, self.asked = threading.Event(), None, queue.SimpleQueue()

    def fetch(self, pixels, finite, unsafe):
        self.asked.put(len(pixels))

        def wait():
            assert self.let_in.wait(WAIT_S)
            if self.fault:
                raise self.fault
            return pixels, finite, unsafe

        return wait

    def under_way(self, pictures):
        """Return when this number of pictures have been submitted."""
        while pictures > 0:
            pictures -= self.asked.get(timeout=WAIT_S)


@contextlib.contextmanager
def late_pictures(**config):
    model = LatePictures()
    with talk_with(model, **config) as talk:
        try:
            yield model, talk
        finally:
            model.let_in.set()


def test_steps_go_on_while_the_pictures_of_others_are_made():
    with late_pictures() as (model, talk):
        talk.ask("picture", num_inference_steps=1)
        model.under_way(1)
        talk.ask("steps", num_inference_steps=50)
        model.under_way(1)

        assert model.batches.count(["steps"]) == 50
        assert not any(isinstance(message, Generated) for said in talk.of.values() for message in said)
        model.let_in.set()
        assert all(isinstance(answer, Generated) for answer in talk.ends("picture", "steps"))


def test_a_batch_of_pictures_under_way_keeps_others_waiting():
    with late_pictures(max_batch=2) as (model, talk):
        talk.ask("a", num_inference_steps=1, num_images=2)
        model.under_way(2)
        talk.ask("b")
        while not talk.engine._waiting:  # decoded
            time.sleep(0.001)

        assert not any("b" in batch for batch in model.batches)
        model.let_in.set()
        assert isinstance(talk.until("b"), Generated)


def test_an_engine_that_waits_for_pictures_does_not_say_that_it_is_idle():
    with late_pictures(beat_times=BeatTimes(idle_s=0.005, busy_s=0.0)) as (model, talk):
        talk.ask("a")
        model.under_way(1)
        time.sleep(0.1)  # twenty times as long as an idle engine is silent
        while not talk._said.empty():
            talk.hear()

    stages = [beat.stage for beat in talk.beats]
    assert "idle" not in stages[stages.index("steps") :]


def test_a_device_that_fails_at_pictures_under_way_ends_the_loop():
    model = LatePictures()
    model.fault = DeviceLost()
    model.let_in.set()
    talk = Talk(model, EngineConfig(model="test", data_dir=""))
    talk.ask("a")
    talk.end()

    assert isinstance(talk.fault, DeviceLost)


def test_a_request_cancelled_while_its_picture_is_made_gets_no_answer_but_that():
    with late_pictures() as (model, talk):
        talk.ask("goes")
        model.under_way(1)
        talk.engine.cancel("goes")
        talk.ask("stays", num_inference_steps=3)  # the loop comes round
        model.under_way(1)
        model.let_in.set()
        goes, stays = talk.ends("goes", "stays")

    assert (type(goes), type(stays)) == (Cancelled, Generated)
    assert sum(not isinstance(message, Started) for message in talk.of["goes"]) == 1


def test_a_drained_engine_has_waited_for_its_pictures():
    model = LatePictures()
    talk = Talk(model, EngineConfig(model="test", data_dir=""))
    talk.ask("a")
    model.under_way(1)
    talk.engine.drain()
    model.let_in.set()
    talk.end()

    assert isinstance(talk.until("a"), Generated)


class Unready(Watched):
    """What is encoded late is not there before it is asked for a second time, if anybody else can step."""

    def encode(self, items):
        images = super().encode(items)
        for image in images:
            image.ready = image.prompt != "late"
        return images


def test_a_step_does_not_wait_for_what_is_still_being_encoded():
    model = Unready()
    with talk_with(model) as talk:
        talk.ask("ready", num_inference_steps=20)
        talk.until("ready", Started)
        talk.ask("late", num_inference_steps=2)
        talk.ends("ready", "late")

    assert [batch for batch in model.batches if len(batch) > 1] == []
    assert model.batches[-2:] == [["late"], ["late"]]


class Crowded(Watched):
    """Has memory for two rows of a step at once; and for more than none only when something else has been given up."""

    def __init__(self, *, full=False):
        super().__init__()
        self.full = full

    def room(self, stage, size, most):
        return min(most, 2) if stage == "steps" else most

    def decode(self, trajectories):
        if self.full:
            raise MemoryError
        return super().decode(trajectories)

    def relieve(self):
        relieved, self.full = self.full, False
        return relieved


def test_a_step_has_no_more_rows_than_there_is_memory_for():
    model = Crowded()
    with talk_with(model, max_batch=8) as talk:
        talk.ask("a", num_images=5)
        answer = talk.until("a")

    assert max(map(len, model.batches)) == 2
    assert len(answer.pictures) == 5


def test_a_picture_alone_without_memory_is_tried_again_when_some_was_given_up():
    with talk_with(Crowded(full=True)) as talk:
        talk.ask("a")

        assert isinstance(talk.until("a"), Generated)


def levels(answer):
    return np.stack([np.frombuffer(picture.data, np.uint8) for picture in answer.pictures]).astype(int)


# Levels of 8-bit colour that a picture may differ by, and how many images share a step, by `max_batch`. Alone in every
# call, a picture is the same to the bit: that is the deterministic mode.
@pytest.mark.parametrize(("max_batch", "tolerance", "shared"), [(8, 1, 4), (1, 0, 1)])
def test_a_picture_does_not_depend_on_what_else_is_in_flight(max_batch, tolerance, shared):
    tiny = Counted(tiny_models.make())
    with talk_with(tiny, max_batch=max_batch) as talk:
        alone = []
        for number, params in enumerate(MIXED):
            talk.ask(f"alone {number}", prompt=f"a {number}", image=b"64x64:90", **params)
            alone += talk.ends(f"alone {number}")
        for number, params in enumerate(MIXED):
            talk.ask(f"mixed {number}", prompt=f"a {number}", image=b"64x64:90", **params)
        mixed = talk.ends(*(f"mixed {number}" for number in range(len(MIXED))))

    worst = max(np.abs(levels(one) - levels(other)).max() for one, other in zip(alone, mixed, strict=True))
    assert worst <= tolerance
    assert max(tiny.sizes) >= shared
    assert len({picture.data for answer in alone for picture in answer.pictures}) == sum(
        params.get("num_images", 1) for params in MIXED
    )


def test_with_one_image_a_step_not_a_bit_depends_on_what_else_is_in_flight():
    """Nor on other sizes beside it, on what the prompts' cache has thrown out, or on what the engine did before."""
    tiny = TorchBackend(tiny_models.make())
    tiny.prompts._capacity = 2
    asked = [
        {"image": f"{side}:{40 * number}".encode(), "prompt": f"a {(number + turn) % 4}", **params}
        for turn, side in enumerate(("64x64", "64x96", "72x64"))
        for number, params in enumerate(MIXED)
    ]
    with talk_with(tiny, max_batch=1) as talk:
        alone = []
        for number, params in enumerate(asked):
            talk.ask(f"alone {number}", **params)
            alone += talk.ends(f"alone {number}")
        for number in reversed(range(len(asked))):
            talk.ask(f"together {number}", priority=Priority(number % 4), tenant=str(number % 3), **asked[number])
        together = talk.ends(*(f"together {number}" for number in range(len(asked))))

    assert [answer.pictures for answer in together] == [answer.pictures for answer in alone]


# --- large pictures ----------------------------------------------------------------------------------------------


def test_a_request_whose_picture_is_large_is_given_back():
    with talk_with(FaultyModel()) as talk:
        talk.ask("a", image=b"large")
        given_back = talk.until("a")

    assert given_back == Large("a", alone=True)


def test_a_large_picture_that_is_being_decoded_holds_up_no_other_request():
    decoders = HeldUpDecoders()
    with talk_with(FaultyModel(), decoders=decoders) as talk:
        talk.ask("a", large=True)
        assert decoders.asked.wait(WAIT_S)
        for number in range(40):
            talk.ask(f"small {number}")
        talk.ends(*(f"small {number}" for number in range(40)))
        said = talk.of.get("a")
        decoders.let.set()
        talk.until("a", Generated)

    assert said is None
    assert [type(message) for message in talk.of["a"]] == [Decoded, Started, Generated]
    assert decoders.closed.is_set()


def test_a_cancelled_request_ends_its_decoding():
    decoders = HeldUpDecoders()
    with talk_with(FaultyModel(), decoders=decoders) as talk:
        talk.ask("a", large=True)
        assert decoders.asked.wait(WAIT_S)
        talk.engine.cancel("a")
        talk.until("a")

    assert talk.of["a"] == [Cancelled("a")]


def test_a_decoder_that_fails_costs_one_request():
    decoders = HeldUpDecoders()
    decoders.let.set()
    with talk_with(FaultyModel(), decoders=decoders) as talk:
        talk.ask("a", image=b"bug", large=True)
        talk.ask("b", large=True)
        failed, generated = talk.ends("a", "b")

    assert (failed.kind, SECRET in failed.message, type(generated)) == ("engine_error", False, Generated)

"""`fourstep bench`: how fast this box is, from JPEG to JPEG through the engine loop, without the web side.

One request after the other tells the latency, many at once the throughput. A table; the last line is JSON.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import queue
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.engine.backend import LoadedBackend, Stage
from pipelines.engine.loop import Engine
from pipelines.images import codec
from pipelines.messages import Failed, Generated, GenerationParams, Work
from pipelines.tools.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pipelines.messages import EngineConfig, FromEngine

SIDE = 512

_TICK_S = 0.5  # between two words of progress while a picture is made


class StoppedError(KeyboardInterrupt):
    """Ctrl-C during a run: the seconds until its last answer, and the latencies of those that came."""

    def __init__(self, seconds: float, latencies: list[float]) -> None:
        super().__init__()
        self.seconds = seconds
        self.latencies = latencies


class LocalEngine:
    """An engine and its loop on a thread of this process. Requests are (parameters, encoded picture).

    `load` is called on that thread, so that it alone computes: GNU's OpenMP counts the helpers of every thread that
    ever did, and lets all of them sleep between operators once they outnumber the cores. On two cores that costs half.
    """

    def __init__(self, config: EngineConfig, load: Callable[[], LoadedBackend]) -> None:
        self._answers = queue.SimpleQueue[tuple[float, Generated | Failed] | Exception]()
        self._count = 0
        started = Future[tuple[Engine, LoadedBackend]]()
        self._thread = threading.Thread(target=self._run, args=(config, load, started), name="device", daemon=True)
        self._thread.start()
        self.engine, self.loaded = started.result()

    def submit(self, params: GenerationParams, data: bytes) -> str:
        """Put a request on its way; its id."""
        self._count += 1
        self.engine.submit(Work(id=str(self._count), params=params, image=data))
        return str(self._count)

    def answer(self, tick: Callable[[], None] = lambda: None) -> tuple[float, Generated]:
        """When the next answer came (`time.perf_counter`), and the answer. `tick` is called now and then.

        Raises `RuntimeError` if it is a failure, and what the engine ended with if it has.
        """
        while True:
            try:
                match self._answers.get(timeout=_TICK_S):
                    case moment, Generated() as answer:
                        return moment, answer
                    case _, Failed(message=words):
                        raise RuntimeError(words)
                    case error:
                        raise error
            except queue.Empty:
                tick()

    def one(self, params: GenerationParams, data: bytes) -> Generated:
        """One request alone. It is cancelled on Ctrl-C."""
        request_id = self.submit(params, data)
        try:
            return self.answer()[1]
        except KeyboardInterrupt:
            self.engine.cancel(request_id)
            raise

    def many(
        self,
        requests: Iterable[tuple[GenerationParams, bytes]],
        clients: int,
        tick: Callable[[list[float]], None] = lambda latencies: None,
    ) -> tuple[float, list[float]]:
        """All requests, `clients` in flight at a time: seconds in all, and each one's latency.

        `tick` gets the latencies so far, now and then. Raises `StoppedError` on Ctrl-C; what is in flight is cancelled.
        """
        todo, started, latencies = iter(requests), dict[str, float](), list[float]()
        begun = last = time.perf_counter()
        try:
            while True:
                while len(started) < clients and (request := next(todo, None)):
                    moment = time.perf_counter()
                    started[self.submit(*request)] = moment
                if not started:
                    return time.perf_counter() - begun, latencies
                last, message = self.answer(lambda: tick(latencies))
                latencies.append(last - started.pop(message.id))
                tick(latencies)
        except KeyboardInterrupt as stop:
            for request_id in started:
                self.engine.cancel(request_id)
            raise StoppedError(last - begun, latencies) from stop

    def close(self) -> None:
        """Return when nothing is in flight."""
        self.engine.drain()
        self._thread.join()

    def _run(
        self, config: EngineConfig, load: Callable[[], LoadedBackend], started: Future[tuple[Engine, LoadedBackend]]
    ) -> None:
        try:
            loaded = load()
            engine = Engine(config, loaded.model, loaded.codec, self._hear, overlaps=loaded.overlaps)
        except Exception as error:  # noqa: BLE001 – it is the caller's
            started.set_exception(error)
            return
        started.set_result((engine, loaded))
        try:
            engine.run()
        except Exception as error:  # noqa: BLE001 – it is the caller's, who waits for an answer
            self._answers.put(error)

    def _hear(self, message: FromEngine) -> None:
        if isinstance(message, Generated | Failed):
            self._answers.put((time.perf_counter(), message))


def run(
    config: EngineConfig,
    load: Callable[[], LoadedBackend],
    requests: int | None,
    clients: int,
    *,
    seconds: float = 20.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure and print; what was found, `complete` unless Ctrl-C has ended it.

    `requests` are sent alone and then once more by `clients` at a time; without a number, as many as end in half of
    `seconds` each, by what one takes. What would take longer is left out, and said.
    """
    ramp = np.arange(SIDE, dtype=np.uint16) * 255 // SIDE
    pixels = np.stack([np.broadcast_to(ramp, (SIDE, SIDE)), np.broadcast_to(ramp[:, None], (SIDE, SIDE))] * 2, axis=2)
    picture = codec.encode(np.ascontiguousarray(pixels[:, :, :3], dtype=np.uint8), 95, "4:4:4")
    engine = LocalEngine(config, load)
    loaded, progress = engine.loaded, progress or Progress()
    runs: dict[int, tuple[float, list[float]]] = {}
    timings: dict[str, float] = {}
    complete, left_out = False, ""
    try:
        progress.show("warming up")
        timings = engine.one(*_request(0, picture)).timings
        # Eight at once can take minutes on a processor.
        if requests or timings["inference"] * clients < seconds / 4:
            engine.many([_request(seed, picture) for seed in range(clients)], clients)
            timings = engine.one(*_request(0, picture)).timings
        phases = list(dict.fromkeys((1, clients)))
        length, alone = seconds / len(phases), timings["inference"]
        if not requests and clients > 1 and alone * clients > length:
            needed = math.ceil(alone * clients * 2.2)
            left_out = f"{clients} at a time: left out, too slow for {seconds:g} s; --seconds {needed} measures it"
            phases = [1]
        for later, phase in zip(reversed(range(len(phases))), phases, strict=True):
            plan = Plan(requests, length, phase, later=later, expected=alone * phase)
            todo = (_request(seed, picture) for seed in plan)
            try:
                runs[phase] = engine.many(todo, phase, functools.partial(_say, progress, plan))
            except StoppedError as stop:
                runs[phase] = stop.seconds, stop.latencies
                break
        else:
            complete = True
    finally:
        progress.clear()
        engine.close()
    found = {
        "model": loaded.name,
        "device": loaded.device,
        "instructions": loaded.instructions,
        "dtype": loaded.dtype,
        "requests": len(runs[1][1]),
        "complete": complete,
        "clients": {
            str(number): {
                "requests": len(latencies),
                "images_s": round(len(latencies) / wall, 3),
                **percentiles(latencies),
            }
            for number, (wall, latencies) in runs.items()
            if latencies
        },
        "stages_ms": {stage: round(seconds * 1e3, 2) for stage, seconds in timings.items()},
    }
    print(table(found))
    if left_out:
        print(left_out)
    if loaded.heavy_vae:
        print(tiny_vae(timings))
    print(json.dumps(found))
    return found


def _say(progress: Progress, plan: Plan, latencies: Sequence[float]) -> None:
    progress.show(plan.said(latencies))


def _request(seed: int, picture: bytes) -> tuple[GenerationParams, bytes]:
    return GenerationParams(prompt="a photo of a beach", seed=seed), picture


class Plan:
    """The seeds of one run: `requests` of them, else as many as end in `seconds`, and at least one.

    `later`: the number of runs of the same length which come after it. `expected`: seconds that a request takes.
    """

    def __init__(self, requests: int | None, seconds: float, clients: int, *, later: int, expected: float = 0) -> None:
        self._requests, self._seconds, self._clients, self._later = requests, seconds, clients, later
        self._expected = expected
        self._begun = time.perf_counter()

    def __iter__(self) -> Iterator[int]:
        """Yield a seed whenever another request is to be begun."""
        for seed in itertools.count():
            if seed >= self._requests if self._requests else seed and self._left() <= self._expected:
                return
            yield seed

    def said(self, latencies: Sequence[float]) -> str:
        """Return a human-readable line: which run it is, how far, and about how long all of it still takes."""
        done, spent = len(latencies), time.perf_counter() - self._begun
        if not self._requests:
            left = f"{max(0, self._left()) + self._later * self._seconds:.0f} s left"
        elif done:
            left = f"{spent / done * (self._requests * (1 + self._later) - done):.0f} s left"
        else:
            left = "the first is on its way"
        of = f" of {self._requests}" if self._requests else ""
        return f"{self._clients} at a time: {done}{of} done, {left}"

    def _left(self) -> float:
        return self._seconds - (time.perf_counter() - self._begun)


def percentiles(latencies: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 of seconds, in milliseconds."""
    return {f"p{q}_ms": round(float(np.percentile(latencies, q)) * 1e3, 1) for q in (50, 95, 99)}


def table(found: dict[str, Any]) -> str:
    """Return what `run` found as a human-readable table."""
    device = f"{found['device']} ({found['instructions']})" if found["instructions"] else found["device"]
    lines = [f"{found['model']} on {device}, {found['dtype']}, {SIDE}×{SIDE}, 4 steps"]
    lines += [
        f"{number:>3} at a time  " + "  ".join(f"{name} {value:>8}" for name, value in row.items())
        for number, row in found["clients"].items()
    ]
    lines += [f"  {stage:<14}{milliseconds:>10} ms" for stage, milliseconds in found["stages_ms"].items()]
    return "\n".join(lines)


def tiny_vae(timings: Mapping[str, float]) -> str:
    """Return what `--vae tiny` saves of a request with these seconds by stage."""
    saved, whole = timings[Stage.ENCODE] + timings[Stage.DECODE], timings["inference"]
    return f"--vae tiny (TAESD) saves most of {saved:.1f} of {whole:.1f} seconds a request; its pictures are softer"

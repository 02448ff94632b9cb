"""`fourstep bench`: how fast this box is, from JPEG to JPEG through the engine loop, without the web side.

One request after the other tells the latency, many at once the throughput. A table; the last line is JSON.
"""

from __future__ import annotations

import json
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

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipelines.messages import EngineConfig, FromEngine

SIDE = 512


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

    def answer(self) -> tuple[float, Generated]:
        """When the next answer came (`time.perf_counter`), and the answer.

        Raises `RuntimeError` if it is a failure, and what the engine ended with if it has.
        """
        match self._answers.get():
            case moment, Generated() as answer:
                return moment, answer
            case _, Failed(message=words):
                raise RuntimeError(words)
            case error:
                raise error

    def one(self, params: GenerationParams, data: bytes) -> Generated:
        """One request alone."""
        self.submit(params, data)
        return self.answer()[1]

    def many(self, requests: Sequence[tuple[GenerationParams, bytes]], clients: int) -> tuple[float, list[float]]:
        """All requests, `clients` in flight at a time: seconds in all, and each one's latency."""
        todo, started, latencies = list(reversed(requests)), dict[str, float](), list[float]()
        begun = time.perf_counter()
        while todo or started:
            while todo and len(started) < clients:
                moment = time.perf_counter()
                started[self.submit(*todo.pop())] = moment
            moment, message = self.answer()
            latencies.append(moment - started.pop(message.id))
        return time.perf_counter() - begun, latencies

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


def run(config: EngineConfig, load: Callable[[], LoadedBackend], requests: int, clients: int) -> dict[str, Any]:
    """Measure and print; what was found. `requests` are sent alone and then once more by `clients` at a time."""
    ramp = np.arange(SIDE, dtype=np.uint16) * 255 // SIDE
    pixels = np.stack([np.broadcast_to(ramp, (SIDE, SIDE)), np.broadcast_to(ramp[:, None], (SIDE, SIDE))] * 2, axis=2)
    picture = codec.encode(np.ascontiguousarray(pixels[:, :, :3], dtype=np.uint8), 95, "4:4:4")
    todo = [(GenerationParams(prompt="a photo of a beach", seed=seed), picture) for seed in range(requests)]
    engine = LocalEngine(config, load)
    loaded = engine.loaded
    try:
        engine.many(todo[:clients], clients)  # warm
        timings = engine.one(*todo[0]).timings
        walls = {number: engine.many(todo, number) for number in (1, clients)}
    finally:
        engine.close()
    found = {
        "model": loaded.name,
        "device": loaded.device,
        "instructions": loaded.instructions,
        "dtype": loaded.dtype,
        "requests": requests,
        "clients": {
            str(number): {"images_s": round(requests / wall, 3), **percentiles(latencies)}
            for number, (wall, latencies) in walls.items()
        },
        "stages_ms": {stage: round(seconds * 1e3, 2) for stage, seconds in timings.items()},
    }
    print(table(found))
    if loaded.heavy_vae:
        print(tiny_vae(timings))
    print(json.dumps(found))
    return found


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

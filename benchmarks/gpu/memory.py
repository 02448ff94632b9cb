"""Small cards, imitated by a tensor that takes the rest of a large one's memory: does 512×512 stay captured?"""

import time

import torch

from benchmarks.gpu.bench import held, percentiles

# Time without work in which the product captures again what it gave up: it waits two seconds, then captures.
REST_S = 6


def card_8_gb(bench, found):
    """Imitate a card of 8 GB."""
    card(bench, found, 8)


def card_6_gb(bench, found):
    """Imitate a card of 6 GB."""
    card(bench, found, 6)


def card(bench, found, gigabytes):
    """Make usual pictures, then a photo, then usual ones again: the graphs must be there, or come back."""
    ballast = beyond(bench, found, gigabytes)
    with bench.engine(found) as engine:
        usual, photo = bench.several(max(4, bench.requests // 6)), bench.several(1, *bench.photo)
        engine.many(usual[:4], 1)  # warm
        found["before"] = percentiles(engine.many(usual, 1)[1])
        found["8 clients"] = bench.rate(engine, usual, 8)
        found["photo"] = percentiles(engine.many(photo, 1)[1])
        found["just after"] = percentiles(engine.many(usual[:4], 1)[1])
        time.sleep(0.1 if bench.dry else REST_S)
        found["after"] = percentiles(engine.many(usual, 1)[1])
        found["held_after"] = held(engine.model)
        found["slower"] = round(found["after"]["p50_ms"] / found["before"]["p50_ms"], 2)
    del ballast


def beyond(bench, found, gigabytes):
    """Return a tensor that leaves as much memory as a card of this size has, what this process holds included."""
    if bench.dry:
        return torch.empty(0)
    for name in ("ours", "networks", "model"):
        vars(bench).pop(name, None)
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info()
    rest = int(whole - gigabytes * 1e9)
    if not 0 < rest < free:
        raise ValueError(f"no card to imitate one of {gigabytes} GB on: {whole / 1e9:.0f} GB, {free / 1e9:.0f} free")
    found["ballast_gb"] = round(rest / 1e9, 1)
    return torch.empty(rest, dtype=torch.uint8, device=bench.device)

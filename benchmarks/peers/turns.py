"""Who meets whom, and the turns that a pair takes."""

import contextlib
import importlib.util
import random
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.peers import child, processor, shares

# Ours in the first's arithmetic, against that peer.
PAIRS = (
    ("ours-f32", "diffusers-f32"),
    ("ours-f32", "openvino-f32"),
    ("ours-bf16", "diffusers-bf16"),
    ("ours-bf16", "openvino-auto"),
)
PEERS = tuple(peer for _, peer in PAIRS)
STAGES = ("unet", "encode", "decode", "request")
CHOICES = (*PEERS, *STAGES, "sizes")


def measure(options, described):
    """Measure every pair that this machine allows; return `pairs`, and who is `left_out` or `failed`, with reasons."""
    pairs, left_out = possible(options, described)
    whole = processor.environment("native")  # for what only writes files
    found = {"pairs": [], "left_out": left_out, "failed": {}, "conversion_cpu_s": {}}
    for vae in options.vae:
        spec = {"weights": str(options.weights), "folder": str(options.converted)}
        spec |= {"side": options.side, "stages": stages(options, vae), "threads": 1, "taesd": None}
        spec["limited"] = bool(described["emulated"])
        if not spec["stages"]:
            continue
        if vae == "tiny":
            spec["taesd"] = str(options.converted / "taesd" / "vae")
            child.ask(spec | {"contender": "taesd"}, whole)
        if any(peer.startswith("openvino") for _, peer in pairs):
            try:
                took = child.ask(spec | {"contender": "conversion"}, whole)
            except child.Failed as error:  # then its pairs fail as well, and the others do not
                found["failed"][f"conversion, {vae} autoencoder"] = str(error)
            else:
                found["conversion_cpu_s"] |= {f"{vae} {part}": seconds for part, seconds in took.items()}
        for threads in options.threads:
            for ours, peer in pairs:
                label = {"ours": ours, "peer": peer, "vae": vae, "threads": threads}
                try:
                    found["pairs"].append(label | meet(ours, peer, spec | {"threads": threads}, options))
                except child.Failed as error:
                    found["failed"][" ".join(map(str, label.values()))] = str(error)
    return found


def possible(options, described):
    """Return the pairs that are asked for and can run here, and reasons for the peers that can't."""
    asked = [pair for pair in PAIRS if pair[1] in options.only] or PAIRS
    reasons = {}
    for _, peer in asked:
        if peer.startswith("openvino") and importlib.util.find_spec("openvino") is None:
            reasons[peer] = "not installed. Hint: pip install 'fourstep[bench-peers]'"
        elif peer == "diffusers-bf16" and not processor.has_bfloat16(described):
            reasons[peer] = "the processor, as far as it is used, has no bfloat16"
    return [(our_form(ours, options, described), peer) for ours, peer in asked if peer not in reasons], reasons


def our_form(name, options, described):
    """Return which of ours meets a peer: `name`, in float32 where there is no bfloat16, or what `auto` chooses."""
    if options.ours == "auto":
        return "ours-auto"
    return name if processor.has_bfloat16(described) else "ours-f32"


def stages(options, vae):
    """Return the stages to measure with an autoencoder; the UNet does not depend on it."""
    asked = [stage for stage in (*STAGES, "sizes") if stage in options.only] or [*STAGES, "sizes"]
    return [stage for stage in asked if vae == "full" or stage not in {"unet", "sizes"}]


def meet(ours, peer, spec, options):
    """Return what a pair's processes loaded, held and took."""
    sides, environment = {}, processor.environment(options.isa)
    with contextlib.ExitStack() as stack:
        for role, name in (("ours", ours), ("peer", peer)):
            sides[role] = child.Child(spec | {"contender": name}, environment)
            stack.callback(sides[role].close)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = {"loaded": {role: side.loaded for role, side in sides.items()}, "stages": {}}
        for stage in STAGES:
            if stage in spec["stages"]:
                found["stages"][stage] = race(sides, [(stage, spec["side"])], options.rounds, folder)[
                    stage, spec["side"]
                ]
        found["memory"] = {role: side.call("memory") for role, side in sides.items()}
        if "sizes" in spec["stages"] and not peer.startswith("openvino"):
            calls = [("unet", side) for side in sorted({spec["side"], *options.sizes})]
            raced = race(sides, calls, options.rounds, folder)
            found["sizes"] = {side: taken for (_, side), taken in raced.items()}
            others = [taken["cpu_ratio"] for side, taken in found["sizes"].items() if side != spec["side"]]
            found["worst_other_size"] = max(others, default=None)
            share(found["sizes"], spec["side"], {side: shares.unet_flops(options.weights, side) for _, side in calls})
    return found


def share(sizes, whole, flops):
    """Note how long ours took at each size, in parts of what it takes at size `whole` by the operations' number."""
    for side, taken in sizes.items():
        taken["share"] = round(taken["ours_cpu_s"] / sizes[whole]["ours_cpu_s"] * flops[whole] / flops[side], 3)


def race(sides, calls, rounds, folder):
    """Return, by (stage, side), what each took: the calls in another order each round, the two in turn."""
    taken = {call: {role: [] for role in sides} for call in calls}
    refused, order, dice = {}, list(calls), random.Random(0)
    for number in range(rounds + 1):
        for call in order:
            for role, side in sides.items():
                saved = folder / f"{role}-{call[0]}-{call[1]}"
                answer = side.call(*call, save=None if number else str(saved))
                if "refused" in answer:
                    refused.setdefault(call, {})[role] = answer["refused"]
                    continue
                words = f"{call[0]:<8}{call[1]:>4}  {side.name:<15}{answer['cpu_s']:9.3f} s of CPU"
                print(f"round {number}  {words}{answer['wall_s']:9.3f} s", file=sys.stderr, flush=True)
                if number:
                    taken[call][role].append(answer)
        dice.shuffle(order)
    return {call: summary(taken[call], refused.get(call), apart(folder, *call)) for call in calls}


def summary(taken, refused, distance):
    """Return medians of each, and the medians of the rounds' ratios; who has none, with the reason."""
    found = {}
    for key in ("cpu_s", "wall_s"):
        for role, rounds in taken.items():
            if rounds:
                found[f"{role}_{key}"] = round(statistics.median(each[key] for each in rounds), 4)
        if all(taken.values()):
            ratios = [ours[key] / peer[key] for ours, peer in zip(*taken.values(), strict=True)]
            found[f"{key.removesuffix('_s')}_ratio"] = round(statistics.median(ratios), 3)
    if distance is not None:
        found["apart"] = distance
    return found | ({"refused": refused} if refused else {})


def apart(folder, stage, side):
    """Return the distance of ours from the peer's result, relative; None if one has none."""
    import numpy as np

    files = [folder / f"{role}-{stage}-{side}.npy" for role in ("ours", "peer")]
    if not all(file.exists() for file in files):
        return None
    ours, peer = map(np.load, files)
    if not np.isfinite(ours).all() or not np.isfinite(peer).all() or ours.shape != peer.shape:
        raise child.Failed(f"{stage} at {side}: results of {ours.shape} and {peer.shape}, or not finite")
    return float(f"{np.sqrt(np.square(ours - peer).mean() / np.square(peer).mean()):.2g}")

"""The table of what was found."""

KERNELS = ("avx2", "avx512", "amx", "mlas")  # words in the names of OpenVINO's kernels


def table(found):
    """Return a line for each pair's stage, sizes, load and memory."""
    emulated = ", emulated: " + " ".join(f"{name}={value}" for name, value in found["emulated"].items())
    lines = [f"{found['processor']} ({found['family']}), {' '.join(found['has'])}{emulated * bool(found['emulated'])}"]
    for pair in found["pairs"]:
        names = f"{pair['ours']} / {pair['peer']}"
        lines += ["", f"{names}, {pair['vae']} autoencoder, {pair['threads']} thread{'s' * (pair['threads'] > 1)}"]
        lines += [row(stage, taken) for stage, taken in pair["stages"].items()]
        lines += [row(f"unet {side}", taken) for side, taken in pair.get("sizes", {}).items()]
        if pair.get("worst_other_size"):
            lines.append(f"  worst other size / {pair['peer']}: {pair['worst_other_size']:.3f}")
        for role in ("ours", "peer"):
            loaded, memory = pair["loaded"][role], pair["memory"][role]
            gigabytes = "".join(f"   {name.removesuffix('_gb')} {value:.2f} GB" for name, value in memory.items())
            used = [word for word in KERNELS if any(word in kernel for kernel in loaded.get("kernels", []))]
            kernels = f"   kernels of {' '.join(used)}" * bool(used)
            lines.append(
                f"  {pair[role]:<15} {loaded['precision']}, load {loaded['cpu_s']:.1f} s of CPU{gigabytes}{kernels}"
            )
    if found["conversion_cpu_s"]:
        took = "  ".join(f"{part} {seconds:.0f} s" for part, seconds in found["conversion_cpu_s"].items())
        lines += ["", f"OpenVINO's conversion, CPU: {took}"]
    lines += [f"{peer} left out: {reason}" for peer, reason in found["left_out"].items()]
    lines += [f"{pair} FAILED: {reason}" for pair, reason in found["failed"].items()]
    return "\n".join(lines)


def row(name, taken):
    """Return a stage's CPU seconds, wall seconds, ratios and distance, as far as there are any."""
    cells = [
        f"{kind} {taken.get(f'ours_{kind}_s', '–')!s:>8} / {taken.get(f'peer_{kind}_s', '–')!s:>8} s"
        f" = {taken.get(f'{kind}_ratio', '–')!s:<6}"
        for kind in ("cpu", "wall")
    ]
    refused = "   ".join(f"{role}: {reason}" for role, reason in taken.get("refused", {}).items())
    share = f"   {taken['share']:.2f} of its share" if "share" in taken else ""
    return f"  {name:<9} {'   '.join(cells)}   apart {taken.get('apart', '–')}{share}   {refused}".rstrip()

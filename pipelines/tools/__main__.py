"""The programs that `fourstep` starts on the device side: `python -P -m pipelines.tools TOOL --config JSON`.

`JSON` is an `EngineConfig`. They talk to people: findings on stdout, progress and faults on stderr, exit status 0 if
all is well.
"""

import argparse
import sys
from collections.abc import Sequence

import msgspec

from pipelines.errors import SetupError
from pipelines.messages import EngineConfig

_STOPPED = {
    "pull": "What has come is kept; the same command goes on from there.",
    "bench": "Nothing was measured yet.",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the tool that `arguments` name; its exit status."""
    options = _parser().parse_args(arguments)
    config = msgspec.json.decode(options.config, type=EngineConfig)
    try:
        if options.tool == "devices":
            return list_devices()
        if options.tool == "pull":
            return run_pull(config)
        if options.tool == "bench":
            return run_bench(config, options.requests, options.clients, options.seconds)
        return run_doctor(config, options.host, options.port, [name for name in options.names.split(",") if name])
    except SetupError as error:
        print(f"{error.reason}\n{error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. {_STOPPED.get(options.tool, '')}".rstrip(), file=sys.stderr)
        return 130


def list_devices() -> int:
    """Print the devices of this machine, as `--device all` takes them."""
    from pipelines.device import cuda_support, devices  # noqa: PLC0415 (torch: seconds)

    print(",".join(devices.every(cuda_support.build())))
    return 0


def run_pull(config: EngineConfig) -> int:
    """Fetch what `config` needs. Raises `CheckpointError` if it can't be had."""
    from pipelines.device import devices, dtypes  # noqa: PLC0415 (torch: seconds, in which Ctrl-C is heard too)
    from pipelines.hub import download  # noqa: PLC0415 (as above)

    if config.model == "demo" or config.model.startswith("instant"):
        print(f"The {config.model} model is built in: there is nothing to fetch.")
        return 0
    if unused := devices.passed_over(config):
        print(f"{unused}", file=sys.stderr)
    devices.ask_machine(config, keep=False)
    device, dtype = dtypes.pick(config)
    print(f"Looking for what {config.model} needs as {str(dtype).removeprefix('torch.')} on {device.type}.", flush=True)
    download.fetch(config, half=dtype.itemsize == 2, report=download.BarReport())
    print("All is here and verified. From now on no network is needed.")
    return 0


def run_bench(config: EngineConfig, requests: int | None, clients: int, seconds: float) -> int:
    """Measure this box; 130 if Ctrl-C has ended it. Raises `SetupError` if the model can't be had or has no room."""
    from pipelines import worker  # noqa: PLC0415 (torch: seconds)
    from pipelines.tools import bench  # noqa: PLC0415 (torch: seconds)

    def tell(fraction: float, what: str) -> None:
        print(f"{fraction:4.0%} {what}", file=sys.stderr)

    found = bench.run(config, lambda: worker.load_backend(config, tell), requests, clients, seconds=seconds)
    return 0 if found["complete"] else 130


def run_doctor(config: EngineConfig, addresses: Sequence[str], port: int, names: list[str]) -> int:
    """Print every finding; 1 if one of them keeps a server from working."""
    from pipelines.tools import doctor  # noqa: PLC0415 (torch: seconds)

    failed = False
    for finding in doctor.examine(config, addresses, port, names):
        print(finding, flush=True)
        failed = failed or finding.level is doctor.Level.FAIL
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -P -m pipelines.tools")
    parser.add_argument("tool", choices=("pull", "doctor", "bench", "devices"))
    parser.add_argument("--config", required=True, help="an EngineConfig as JSON")
    parser.add_argument("--host", nargs="+", default=["127.0.0.1"], help="addresses to listen on (doctor)")
    parser.add_argument("--port", type=int, default=8000, help="port that the server is to listen on (doctor)")
    parser.add_argument("--names", default="", help="host names that a takeover sends to the server (doctor)")
    parser.add_argument("--requests", type=int, help="to send, alone and then together (bench)")
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure for, without --requests (bench)")
    parser.add_argument("--clients", type=int, default=8, help="at once (bench)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

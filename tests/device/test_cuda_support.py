"""Cards that can't be used are not passed over: why, what helps, and that `--device cpu` is the way round."""

import ctypes
import dataclasses

import pytest
import torch

from pipelines.device import cuda_support, devices
from pipelines.device.cuda_support import Build, Card, System
from pipelines.errors import CheckpointError

WHEEL = Build(
    version="2.13.0",
    cuda="13.0",
    kinds=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"),
    words="No CUDA GPUs are available",
)
CPU_WHEEL = Build(version="2.13.0+cpu")
ROCM = Build(version="2.13.0+rocm7", rocm="7.0", cards=(Card("AMD Radeon RX 7900", (11, 0), 96),))
H100, RTX_4090, RTX_3060, GTX_1080, V100, GT_1030 = (
    Card(name, capability, processors)
    for name, capability, processors in (
        ("NVIDIA H100", (9, 0), 132),
        ("NVIDIA GeForce RTX 4090", (8, 9), 128),
        ("NVIDIA GeForce RTX 3060", (8, 6), 28),
        ("NVIDIA GeForce GTX 1080", (6, 1), 20),
        ("Tesla V100", (7, 0), 80),
        ("NVIDIA GeForce GT 1030", (6, 1), 3),
    )
)
THERE = System(cards=("NVIDIA GeForce RTX 3060",), driver="580.65.06", loaded=True)


def change(value, **fields):
    return dataclasses.replace(value, **fields)


@pytest.mark.parametrize(
    ("build", "system", "reason", "hint"),
    [
        (CPU_WHEEL, THERE, "torch 2.13.0+cpu is built for the processor only", "torch's CUDA build"),
        (Build(version="2.13.0", rocm="7.0"), THERE, "built for ROCm only", "torch's CUDA build"),
        (WHEEL, change(THERE, driver="550.54.14"), "driver 550.54.14 is too old for CUDA 13.0", "driver 580 or newer"),
        (WHEEL, change(THERE, driver="", loaded=False), "its driver is not installed", "Install NVIDIA's driver"),
        (WHEEL, change(THERE, driver="", stale=True), "the old one still runs", "Start the machine anew"),
        (
            WHEEL,
            change(THERE, container=True, driver="", blocked=("/dev/nvidiactl",)),
            "this container was started without GPUs",
            "--gpus all",
        ),
        (
            WHEEL,
            change(THERE, blocked=("/dev/nvidiactl", "/dev/nvidia-uvm")),
            "this user can't open /dev/nvidiactl and /dev/nvidia-uvm",
            "nvidia-modprobe -u -c 0",
        ),
        (WHEEL, THERE, "torch says “No CUDA GPUs are available” (driver 580.65.06)", "CUDA_VISIBLE_DEVICES"),
        (change(WHEEL, cuda="12.6"), change(THERE, driver="550.54.14"), "torch says", "nvidia-smi"),
    ],
)
def test_a_card_that_torch_does_not_see_is_named_with_the_reason_and_what_helps(build, system, reason, hint):
    fault = cuda_support.fault(build, lambda: system)

    assert fault.reason.startswith("NVIDIA GeForce RTX 3060 can't be used: ")
    assert reason in fault.reason
    assert hint in fault.hint
    assert fault.hint.endswith("Or use the processor: --device cpu.")
    assert fault.of_torch is (build.cuda is None)


@pytest.mark.parametrize("build", [WHEEL, CPU_WHEEL])
def test_a_machine_without_a_card_has_no_fault(build):
    assert cuda_support.fault(build, System) is None


def look():
    pytest.fail("the driver is asked, which takes seconds where it sleeps")


@pytest.mark.parametrize(
    ("card", "reason", "hint"),
    [
        (GTX_1080, "no code for it (compute capability 6.1; it has sm_75 sm_80", "CUDA 12.6"),
        (V100, "Tesla V100 can't be used", "CUDA 12.6"),
        (Card("NVIDIA of 2030", (13, 0), 200), "compute capability 13.0", "a newer torch"),
    ],
)
def test_a_card_that_the_build_has_no_code_for_is_a_fault(card, reason, hint):
    build = change(WHEEL, kinds=WHEEL.kinds[:-1], cards=(card,))

    fault = cuda_support.fault(build, look)

    assert reason in fault.reason
    assert hint in fault.hint
    assert fault.of_torch


@pytest.mark.parametrize(
    ("cards", "index"),
    [
        ((H100,), 0),
        ((GT_1030, RTX_4090), 1),
        ((RTX_3060, RTX_4090, V100), 1),
        ((RTX_4090, RTX_4090), 0),
        ((V100,), None),
        ((), None),
    ],
)
def test_the_card_with_most_processors_is_taken_of_those_that_can_be_used(cards, index):
    build = change(WHEEL, cards=cards)

    assert cuda_support.best(build) == index
    assert (cuda_support.fault(build, System) is None) == (index is not None or not cards)


def test_a_build_for_rocm_is_refused_in_words():
    fault = cuda_support.fault(ROCM, look)

    assert "built for ROCm, and fourstep does not compute on AMD's cards (AMD Radeon RX 7900)" in fault.reason
    assert "--device cpu" in fault.hint


@pytest.mark.parametrize(
    ("kinds", "capability", "runs"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80", "sm_90"], (8, 6), True),
        (["sm_80", "sm_90a"], (8, 0), True),
        (["sm_80", "sm_90"], (7, 5), False),
        (["sm_80", "sm_90"], (12, 0), False),
        (["sm_86"], (8, 0), False),
        (["sm_80", "compute_90"], (12, 0), True),
        (["sm_100", "sm_120"], (12, 0), True),
    ],
)
def test_code_runs_on_its_own_major_version_and_an_intermediate_form_on_later_ones(kinds, capability, runs):
    assert cuda_support.runs_on(kinds, capability) is runs


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """A function that gives this machine a torch and cards."""

    def become(build, system=THERE):
        monkeypatch.setattr(cuda_support, "build", lambda: build)
        monkeypatch.setattr(cuda_support.fault, "__defaults__", (lambda: system,))

    return become


@pytest.mark.parametrize(
    ("build", "name", "device"),
    [
        (change(WHEEL, cards=(GT_1030, RTX_4090)), "auto", "cuda:1"),
        (change(WHEEL, cards=(GT_1030, RTX_4090)), "cuda", "cuda:1"),
        (change(WHEEL, cards=(RTX_3060, RTX_4090)), "cuda:0", "cuda:0"),
        (change(WHEEL, cards=(V100,)), "auto", "cpu"),
        (CPU_WHEEL, "auto", "cpu"),
    ],
)
def test_a_name_means_a_card_that_can_be_used(build, name, device, machine):
    machine(build)

    assert devices.pick_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("build", "system", "name", "reason"),
    [
        (change(WHEEL, cards=(GTX_1080, RTX_4090)), THERE, "cuda:0", "GTX 1080 can't be used"),
        (change(WHEEL, cards=(GTX_1080,)), THERE, "cuda", "GTX 1080 can't be used"),
        (change(WHEEL, cards=(RTX_4090,)), THERE, "cuda:2", "cuda:2 is not there: torch sees 1 CUDA device"),
        (WHEEL, change(THERE, driver="550.54"), "cuda", "too old for CUDA 13.0"),
        (WHEEL, System(), "cuda:0", "torch sees no CUDA device: No CUDA GPUs are available"),
        (CPU_WHEEL, System(), "cuda", "torch 2.13.0+cpu is not built for CUDA"),
        (ROCM, System(), "cuda", "built for ROCm"),
    ],
)
def test_a_card_that_is_asked_for_and_can_not_be_used_is_an_error(build, system, name, reason, machine):
    machine(build, system)

    with pytest.raises(CheckpointError) as error:
        devices.pick_device(name)

    assert reason in error.value.reason
    assert error.value.hint


# --- what driver and system say --------------------------------------------------------------------------------------


class Nvml:
    """NVML with two cards, or one that answers `status`."""

    def __init__(self, status=0):
        self.status = status

    def nvmlInit_v2(self):  # noqa: N802 (NVIDIA's)
        return self.status

    def nvmlShutdown(self):  # noqa: N802
        return 0

    def nvmlSystemGetDriverVersion(self, out, length):  # noqa: N802
        out.value = b"580.65.06"[: length - 1]

    def nvmlDeviceGetCount_v2(self, out):  # noqa: N802
        out._obj.value = 2

    def nvmlDeviceGetHandleByIndex_v2(self, index, out):  # noqa: N802
        out._obj.value = index + 1
        return 0

    def nvmlDeviceGetName(self, card, out, length):  # noqa: N802
        out.value = f"Card {card.value}".encode()[: length - 1]


@pytest.fixture
def nvml(monkeypatch):
    """A function that gives this machine an NVML, None for none."""

    def become(library):
        def load(name):
            if library is None:
                raise OSError(name)
            return library

        monkeypatch.setattr(ctypes, "CDLL", load)

    become(None)
    return become


def test_the_driver_tells_its_version_and_cards(nvml, tmp_path):
    nvml(Nvml())

    found = cuda_support.system(tmp_path)

    assert (found.cards, found.driver, found.stale) == (("Card 1", "Card 2"), "580.65.06", False)


@pytest.mark.parametrize(("status", "stale"), [(18, True), (9, False)])
def test_an_update_that_waits_for_a_restart_is_told_from_a_driver_that_does_not_run(status, stale, nvml, tmp_path):
    nvml(Nvml(status))

    found = cuda_support.system(tmp_path)

    assert (found.driver, found.stale) == ("", stale)


def test_the_kernels_driver_names_cards(nvml, tmp_path):
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA GeForce RTX 3060\nIRQ:   \t 137\n")
    (tmp_path / "proc/driver/nvidia/version").touch()

    found = cuda_support.system(tmp_path)

    assert (found.cards, found.loaded) == (("NVIDIA GeForce RTX 3060",), True)
    assert found.blocked == ("/dev/nvidiactl", "/dev/nvidia-uvm")


def test_device_files_that_can_be_opened_block_nothing(nvml, tmp_path):
    (tmp_path / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()

    assert cuda_support.system(tmp_path).blocked == ()


@pytest.mark.parametrize(
    ("vendor", "kind", "cards"),
    [
        ("0x10de", "0x030200", ("NVIDIA device 2331 (PCI 0000:01:00.0)",)),
        ("0x10de", "0x040300", ()),
        ("0x8086", "0x030000", ()),
    ],
)
def test_nvidia_hardware_is_seen_without_its_driver(vendor, kind, cards, nvml, tmp_path):
    entry = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    entry.mkdir(parents=True)
    for name, text in {"vendor": vendor, "class": kind, "device": "0x2331"}.items():
        (entry / name).write_text(f"{text}\n")

    assert cuda_support.system(tmp_path).cards == cards


@pytest.mark.parametrize(("name", "container"), [(".dockerenv", True), ("run/.containerenv", True), ("other", False)])
def test_a_container_is_known_by_its_mark(name, container, nvml, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()

    assert cuda_support.system(tmp_path).container is container


class OldDriver:
    """`torch.cuda` where the driver is too old."""

    @staticmethod
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).\nPlease update")


def test_torch_tells_in_its_own_words_why_it_sees_no_card(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", OldDriver.init)

    found = cuda_support.build()

    assert found.words == "The NVIDIA driver on your system is too old (found version 12040)."
    assert found.cards == ()


def test_cards_are_told_as_torch_sees_them(monkeypatch):
    class Properties:
        name, major, minor, multi_processor_count = "NVIDIA GeForce RTX 3060", 8, 6, 28

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, answer in {
        "init": None,
        "device_count": 1,
        "get_device_properties": Properties,
        "get_arch_list": ["sm_86"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)

    found = cuda_support.build()

    assert (found.cards, found.kinds, found.words) == ((RTX_3060,), ("sm_86",), "")

"""Weights in every published layout load exactly, and what can't be loaded says why and what to do."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.device import dtypes
from pipelines.errors import CheckpointError, NotOnDiskError
from pipelines.hub import client, layout, manifest, sd15
from pipelines.messages import EngineConfig
from pipelines.weights import architectures, checkpoint, single_file
from pipelines.weights import tensors as weights
from tests.support import checkpoint_layouts
from tests.support.published_configs import FULL, TINY

PARTS = ("unet", "vae", "text_encoder", "safety_checker")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may so much as look up a name."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(client.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the layout of the SD 1.5 repository, both variants."""
    root = tmp_path_factory.mktemp("published")
    checkpoint_layouts.write_folder(root, variants=("", "fp16"))
    return root


@pytest.fixture(scope="session")
def expected(folder: Path) -> dict[str, checkpoint_layouts.Tensors]:
    """Its weights, by today's names, float32."""
    return {
        part: checkpoint_layouts.random_weights(part, json.loads((folder / part / "config.json").read_text()))
        for part in PARTS
    }


def load(model: object, **settings: Any) -> checkpoint.LoadedCheckpoint:
    settings = {"lora": "none", "data_dir": "/nonexistent", "device": "cpu"} | settings
    config = EngineConfig(model=str(model), **settings)
    device, dtype = dtypes.pick(config)
    dtype = torch.float32 if config.dtype == "auto" else dtype  # whatever this processor has
    return checkpoint.load(config, device, dtype, lambda _fraction, _what: None)


def copy(folder: Path, target: Path, *, without: str = "") -> Path:
    """A copy of the checkpoint to alter, without the files or folders of that pattern."""
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns(without)))


def stow(cache: Path, repo: str, source: Path) -> None:
    """Put the files of `source` into the hub's cache as `repo`, as any program that uses the hub leaves them."""
    storage = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(source, storage / "snapshots" / "c0ffee")
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text("c0ffee")


def equal(module: torch.nn.Module, tensors: checkpoint_layouts.Tensors) -> bool:
    state = module.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)


def test_folder_loads_with_every_weight_as_written(folder: Path, expected) -> None:
    model = load(folder)

    assert [part for part in PARTS if not equal(getattr(model, part), expected[part])] == []


def test_loaded_model_is_ready_to_run(folder: Path) -> None:
    model = load(folder)

    parts = [getattr(model, part) for part in PARTS]
    assert not any(part.training for part in parts)
    assert not any(tensor.requires_grad for part in parts for tensor in part.parameters())
    assert not any(tensor.is_meta for part in parts for tensor in (*part.parameters(), *part.buffers()))
    assert (model.name, model.notice) == (folder.name, "")
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.scheduler_config["beta_schedule"] == "scaled_linear"
    assert (
        model.tokenizer("a beach", padding="max_length", truncation=True).input_ids[-1] == model.tokenizer.eos_token_id
    )


def test_buffers_that_no_file_holds_are_made(folder: Path) -> None:
    model = load(folder)

    assert model.text_encoder.embeddings.position_ids.tolist() == [list(range(77))]
    assert model.safety_checker.vision_model.embeddings.position_ids.tolist() == [list(range(17))]


def test_published_checkpoint_runs(folder: Path) -> None:
    model = load(folder)
    ids = torch.tensor([model.tokenizer("a beach", padding="max_length", truncation=True).input_ids])

    with torch.inference_mode():
        text = model.text_encoder(ids).last_hidden_state
        latents = model.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode()
        noise = model.unet(latents, 999, text).sample
        pixels = model.vae.decode(noise).sample

    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.isfinite().all()


def test_folder_with_fp16_variants_alone_loads(tmp_path: Path, folder: Path, expected) -> None:
    copy(folder, tmp_path / "model", without="*model.safetensors")

    model = load(tmp_path / "model")

    assert model.unet.dtype == torch.float32
    assert equal(model.unet, {name: tensor.half().float() for name, tensor in expected["unet"].items()})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_have_the_dtype_that_was_asked_for(dtype: str, folder: Path) -> None:
    model = load(folder, dtype=dtype)

    kinds = {tensor.dtype for part in PARTS for tensor in getattr(model, part).parameters()}
    assert kinds == {getattr(torch, dtype)}


def test_sharded_weights_load(tmp_path: Path, expected) -> None:
    checkpoint_layouts.write_folder(tmp_path / "model", shards=2)

    model = load(tmp_path / "model")

    assert equal(model.unet, expected["unet"])


def test_tokenizer_as_today_s_transformers_saves_it_loads(tmp_path: Path, folder: Path) -> None:
    model = copy(folder, tmp_path / "model", without="tokenizer")
    load(folder).tokenizer.save_pretrained(model / "tokenizer")
    assert not (model / "tokenizer" / "vocab.json").exists()

    assert load(model).tokenizer("a beach").input_ids == load(folder).tokenizer("a beach").input_ids


def test_writing_to_a_weight_leaves_the_file_alone(folder: Path, expected) -> None:
    load(folder).unet.conv_in.weight.zero_()

    assert equal(load(folder).unet, expected["unet"])


def test_progress_rises_from_nothing_to_all(folder: Path) -> None:
    told: list[float] = []

    checkpoint.load(
        EngineConfig(model=str(folder), lora="none", data_dir="/nonexistent"),
        torch.device("cpu"),
        torch.float32,
        lambda fraction, _what: told.append(fraction),
    )

    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("names", "half", "chosen"),
    [
        (["model.safetensors", "model.fp16.safetensors"], False, ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], True, ["model.fp16.safetensors"]),
        (["model.fp16.safetensors", "model.fp16.bin"], False, ["model.fp16.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], True, ["model.safetensors"]),
        (
            ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.non_ema.safetensors"],
            False,
            ["diffusion_pytorch_model.safetensors"],
        ),
        (
            [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)] + ["model.safetensors.index.json"],
            False,
            [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)],
        ),
        (
            ["model.safetensors"] + [f"model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)],
            True,
            [f"model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)],
        ),
    ],
)
def test_one_variant_of_the_weights_is_chosen(names: list[str], chosen: list[str], *, half: bool) -> None:
    there = [f"unet/{name}" for name in (*names, "config.json")] + ["vae/model.safetensors", "v1-5-pruned.safetensors"]

    part = layout.find_part(there, "unet", half=half, label="it")

    assert part == layout.Part("unet/config.json", tuple(f"unet/{name}" for name in chosen))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["config.json", "diffusion_pytorch_model.bin"], "pickles"),
        (["config.json", "diffusion_pytorch_model-00001-of-00002.safetensors"], "1 of 2 shards"),
        (["diffusion_pytorch_model.safetensors"], r"config\.json is missing"),
    ],
)
def test_unusable_part_is_refused(names: list[str], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        layout.find_part([f"unet/{name}" for name in names], "unet", half=False, label="it")


# --- the original layout -----------------------------------------------------------------------------------------


def test_single_file_gives_every_weight_of_unet_and_vae(tmp_path: Path, expected) -> None:
    checkpoint_layouts.write_single_file(tmp_path / "one.safetensors", expected)

    parts = single_file.split(
        weights.read([tmp_path / "one.safetensors"]), TINY["unet"], TINY["vae"], label="one.safetensors"
    )

    for part, make in (("unet", architectures.make_unet), ("vae", architectures.make_vae)):
        module = weights.fill(make(TINY[part]), parts[part], device=torch.device("cpu"), dtype=torch.float32, what=part)
        assert equal(module, expected[part])


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of SD 1.5 in one file, full size; its zeros are a hole in the file and take no disk and no memory."""
    parts = {part: makers(FULL[part]).state_dict() for part, makers in MAKERS.items()}
    path = tmp_path_factory.mktemp("single") / "v1-5-pruned-emaonly.safetensors"
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint_layouts.ldm_names(parts).items()}
    checkpoint_layouts.write_sparse(path, shapes, "F16")
    return path


MAKERS: dict[str, Callable[[Any], torch.nn.Module]] = {
    "unet": architectures.make_unet,
    "vae": architectures.make_vae,
    "text_encoder": architectures.make_text_encoder,
}


def test_full_size_single_file_loads_with_tokenizer_beside_it(full_size: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / full_size.name).symlink_to(full_size)
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")

    model = load(tmp_path / full_size.name, safety_checker="none", dtype="float16")

    assert sum(weight.numel() for weight in model.unet.parameters()) == 859_520_964
    assert sum(weight.numel() for weight in model.vae.parameters()) == 83_653_863
    assert sum(weight.numel() for weight in model.text_encoder.parameters()) == 123_060_480
    assert (model.name, model.tokenizer.model_max_length) == (full_size.name, 77)
    assert model.scheduler_config["beta_start"] == 0.00085


def test_single_file_takes_tokenizer_and_checker_of_the_base_from_the_cache(
    full_size: Path, folder: Path, cache: Path
) -> None:
    stow(cache, sd15.BASE, folder)

    model = load(full_size, dtype="float16")

    assert model.tokenizer("a").input_ids
    assert model.safety_checker is not None


def test_single_file_without_tokenizer_names_the_command_that_fetches_it(full_size: Path) -> None:
    with pytest.raises(NotOnDiskError) as caught:
        load(full_size, safety_checker="none")

    assert f"fourstep pull --model {full_size}" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("conditioner.embedders.0.transformer.text_model.x", "Stable Diffusion XL"),
        ("cond_stage_model.model.transformer.resblocks.0.x", "Stable Diffusion 2"),
        ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
        ("control_model.x", "ControlNet"),
        ("lora_unet_x", "is a LoRA"),
        ("first_stage_model.x", "no UNet"),
    ],
)
def test_single_file_of_another_family_is_refused_by_name(name: str, family: str, tmp_path: Path, folder: Path) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "one.safetensors")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")

    with pytest.raises(CheckpointError, match=family):
        load(tmp_path / "one.safetensors", safety_checker="none")


def test_single_file_with_a_weight_too_many_is_refused(expected) -> None:
    tensors = checkpoint_layouts.ldm_names(expected) | {"model.diffusion_model.input_blocks.1.5.weight": torch.zeros(1)}

    with pytest.raises(CheckpointError, match="1 weights have no place"):
        single_file.split(tensors, TINY["unet"], TINY["vae"], label="it")


def test_single_file_without_vae_asks_for_one(tmp_path: Path, folder: Path, expected) -> None:
    checkpoint_layouts.write_single_file(tmp_path / "one.safetensors", {**expected, "vae": {}})
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")

    with pytest.raises(CheckpointError, match="no VAE") as caught:
        load(tmp_path / "one.safetensors", safety_checker="none")

    assert "--vae" in caught.value.hint


# --- LoRA, VAE, safety checker -----------------------------------------------------------------------------------


def write_lora(
    target: Path, expected: dict[str, checkpoint_layouts.Tensors]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    factors = checkpoint_layouts.lora_factors(expected["unet"], rank=4)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(checkpoint_layouts.kohya(factors, alpha=8.0), target)
    return factors


def test_lora_file_is_merged_into_the_weights(tmp_path: Path, folder: Path, expected) -> None:
    factors = write_lora(tmp_path / "lora.safetensors", expected)

    unet = load(folder, lora=tmp_path / "lora.safetensors").unet.state_dict()

    down, up = (factor.float() for factor in factors["up_blocks.1.resnets.0.conv1"])
    gain = 8.0 / 4 * torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    torch.testing.assert_close(
        unet["up_blocks.1.resnets.0.conv1.weight"], expected["unet"]["up_blocks.1.resnets.0.conv1.weight"] + gain
    )
    assert torch.equal(unet["conv_in.weight"], expected["unet"]["conv_in.weight"])


def test_lora_is_merged_before_the_cast(tmp_path: Path, folder: Path, expected) -> None:
    copy(folder, tmp_path / "model", without="*.fp16.safetensors")
    factors = write_lora(tmp_path / "lora.safetensors", expected)

    unet = load(tmp_path / "model", lora=tmp_path / "lora.safetensors", dtype="float16").unet.state_dict()

    name = "mid_block.resnets.0.time_emb_proj"
    down, up = (factor.float() for factor in factors[name])
    exact = (expected["unet"][f"{name}.weight"] + 8.0 / 4 * (up @ down)).half()
    torch.testing.assert_close(unet[f"{name}.weight"], exact, rtol=0, atol=1e-6)


def test_auto_lora_is_the_published_one_from_the_cache(tmp_path: Path, cache: Path, folder: Path, expected) -> None:
    write_lora(tmp_path / "lora" / layout.LORA, expected)
    stow(cache, sd15.LCM_LORA, tmp_path / "lora")

    model = load(folder, lora="auto")

    assert not equal(model.unet, expected["unet"])


def test_auto_lora_that_is_not_on_disk_names_the_command(folder: Path) -> None:
    with pytest.raises(NotOnDiskError, match=sd15.LCM_LORA) as caught:
        load(folder, lora="auto")

    assert f"fourstep pull --model {folder}" in caught.value.hint


def test_auto_lora_is_none_for_a_base_that_is_an_lcm(tmp_path: Path, folder: Path, expected) -> None:
    model = copy(folder, tmp_path / "lcm")
    (model / layout.SCHEDULER).write_text('{"_class_name": "LCMScheduler"}')

    assert equal(load(model, lora="auto").unet, expected["unet"])


def test_lora_of_another_width_is_refused(tmp_path: Path, folder: Path) -> None:
    wide = {"unet": {"mid_block.resnets.0.time_emb_proj.weight": torch.zeros(1280, 1280)}}
    write_lora(tmp_path / "lora.safetensors", wide)

    with pytest.raises(CheckpointError, match=r"does not fit this model.*time_emb_proj"):
        load(folder, lora=tmp_path / "lora.safetensors")


def test_vae_of_its_own_replaces_the_base_s(tmp_path: Path, folder: Path, expected) -> None:
    config = TINY["vae"] | {"_class_name": "AutoencoderTiny", "encoder_block_out_channels": [4] * 4}
    config |= {"decoder_block_out_channels": [4] * 4}
    save_folder(tmp_path / "taesd", config, "diffusion_pytorch_model.safetensors", architectures.make_vae(config))

    model = load(folder, vae=tmp_path / "taesd")

    assert isinstance(model.vae, architectures.AutoencoderTiny)
    assert equal(model.unet, expected["unet"])


def test_tiny_vae_comes_from_the_cache(tmp_path: Path, cache: Path, folder: Path) -> None:
    config = {"_class_name": "AutoencoderTiny", "_diffusers_version": "0.20.0", "block_out_channels": [64] * 4}
    save_folder(tmp_path / "taesd", config, "diffusion_pytorch_model.safetensors", architectures.make_vae(config))
    stow(cache, sd15.TINY_VAE, tmp_path / "taesd")

    model = load(folder, vae="tiny")

    assert isinstance(model.vae, architectures.AutoencoderTiny)


def save_folder(target: Path, config: dict[str, Any], file: str, module: torch.nn.Module) -> None:
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    save_file({name: torch.zeros(tensor.shape) for name, tensor in module.state_dict().items()}, target / file)


def test_safety_checker_may_be_none(folder: Path) -> None:
    assert load(folder, safety_checker="none").safety_checker is None


@pytest.mark.parametrize("inside", ["", "safety_checker"])
def test_safety_checker_may_come_from_elsewhere(inside: str, tmp_path: Path, folder: Path) -> None:
    copy(folder, tmp_path / "model", without="safety_checker")
    shutil.copytree(folder / "safety_checker", tmp_path / "checker" / inside)

    model = load(tmp_path / "model", safety_checker=tmp_path / "checker")

    assert model.safety_checker is not None


def pickle_checker(model: Path) -> None:
    """Leave of its safety checker what old checkpoints have: a pickle."""
    for file in (model / "safety_checker").glob("*.safetensors"):
        file.unlink()
    (model / "safety_checker" / "pytorch_model.bin").touch()


@pytest.mark.parametrize("pickled", [True, False])
@pytest.mark.parametrize(("repo", "inside"), [(sd15.BASE, "safety_checker"), (sd15.SAFETY_CHECKER, "")])
def test_base_without_checker_gets_one_from_the_cache(
    repo: str, inside: str, tmp_path: Path, *, pickled: bool, cache: Path, folder: Path, expected
) -> None:
    copy(folder, tmp_path / "model", without="" if pickled else "safety_checker")
    if pickled:
        pickle_checker(tmp_path / "model")
    shutil.copytree(folder / "safety_checker", tmp_path / "repo" / inside)
    stow(cache, repo, tmp_path / "repo")

    model = load(tmp_path / "model")

    assert equal(model.safety_checker, expected["safety_checker"])


def test_base_without_checker_never_runs_unchecked_by_itself(tmp_path: Path, folder: Path) -> None:
    copy(folder, tmp_path / "model", without="safety_checker")

    with pytest.raises(NotOnDiskError, match="without a safety checker") as caught:
        load(tmp_path / "model")

    assert "fourstep pull" in caught.value.hint
    assert "--safety-checker none" in caught.value.hint


def damage_checker(model: Path) -> None:
    (model / "safety_checker" / "config.json").unlink()


@pytest.mark.parametrize("damage", [pickle_checker, damage_checker])
@pytest.mark.parametrize("asked", ["auto", "itself"])
def test_checker_that_can_not_be_read_names_the_flag(damage, asked: str, tmp_path: Path, folder: Path) -> None:
    copy(folder, tmp_path / "model")
    damage(tmp_path / "model")

    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "model", safety_checker="auto" if asked == "auto" else tmp_path / "model")

    assert "--safety-checker none" in caught.value.hint


def test_forced_checks_without_checker_are_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="Safety checks are forced"):
        load(folder, safety_checker="none", force_safety_checks=True)


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"time_cond_proj_dim": 256}, "guidance scale as an input"),
        ({"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        ({"in_channels": 9}, "9 channels"),
        ({"cross_attention_dim": 32}, "reads text 32 wide"),
    ],
)
def test_unet_that_wants_other_inputs_is_refused(
    change: dict[str, Any], reason: str, tmp_path: Path, folder: Path
) -> None:
    model = copy(folder, tmp_path / "model")
    (model / "unet" / "config.json").write_text(json.dumps(TINY["unet"] | change))

    with pytest.raises(CheckpointError, match=reason):
        load(model)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda tensors: tensors.pop("conv_in.bias"), r"1 missing \(conv_in\.bias\)"),
        (lambda tensors: tensors.update({"conv_in.extra": torch.zeros(1)}), r"1 unknown \(conv_in\.extra\)"),
        (lambda tensors: tensors.update({"conv_in.bias": torch.zeros(9)}), r"1 of another shape \(conv_in\.bias\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(damage, reason: str, tmp_path: Path, folder: Path) -> None:
    copy(folder, tmp_path / "model")
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)

    with pytest.raises(CheckpointError, match=f"unet.*{reason}"):
        load(tmp_path / "model")


def test_file_that_was_cut_short_is_refused(tmp_path: Path, folder: Path) -> None:
    copy(folder, tmp_path / "model")
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match="can't be read"):
        load(tmp_path / "model")


def test_pickle_of_a_whole_model_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"never read")

    with pytest.raises(CheckpointError, match="pickle"):
        load(tmp_path / "model.ckpt")


@pytest.mark.parametrize("model", ["models/missing.safetensors", "nonsense", "a/b/c", "../up", ""])
def test_model_that_is_nowhere_is_refused(model: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist") as caught:
        load(model)

    assert "hub id" in caught.value.hint


@pytest.mark.parametrize("settings", [{"device": "cuda:9"}, {"device": "toaster"}, {"dtype": "int8"}])
def test_device_or_dtype_that_is_not_there_is_refused(settings: dict[str, str], folder: Path) -> None:
    with pytest.raises(CheckpointError):
        load(folder, **settings)


# --- the hub's cache ---------------------------------------------------------------------------------------------


def test_guard_against_the_network_would_notice() -> None:
    with pytest.raises(AssertionError, match="the network was touched"):
        client.Remote(sd15.BASE)


def test_sd15_loads_from_the_cache_alone(tmp_path: Path, cache: Path, folder: Path, expected) -> None:
    write_lora(tmp_path / "lora" / layout.LORA, expected)
    stow(cache, sd15.BASE, folder)
    stow(cache, sd15.LCM_LORA, tmp_path / "lora")

    model = load("sd15", lora="auto")

    assert (model.name, model.notice) == ("sd15", "")
    assert model.safety_checker is not None


def test_sd15_that_is_not_on_disk_is_an_error_and_never_the_demo() -> None:
    with pytest.raises(NotOnDiskError, match=sd15.BASE) as caught:
        load("sd15", lora="auto")

    assert "`fourstep pull`" in caught.value.hint


def test_part_that_the_cache_lacks_is_named(tmp_path: Path, cache: Path, folder: Path) -> None:
    copy(folder, tmp_path / "some", without="unet")
    stow(cache, "someone/model", tmp_path / "some")

    with pytest.raises(NotOnDiskError, match="no weights in unet") as caught:
        load("someone/model")

    assert "fourstep pull --model someone/model" in caught.value.hint


def test_auto_takes_the_real_weights_where_they_are(tmp_path: Path, cache: Path, folder: Path, expected) -> None:
    write_lora(tmp_path / "lora" / layout.LORA, expected)
    stow(cache, sd15.BASE, folder)
    stow(cache, sd15.LCM_LORA, tmp_path / "lora")

    model = load("auto", lora="auto")

    assert (model.name, model.notice) == ("sd15", "")


def test_auto_on_a_cpu_serves_the_demo_and_says_so(tmp_path: Path) -> None:
    model = load("auto", lora="auto", data_dir=str(tmp_path / "data"))

    assert model.name == "demo"
    assert sd15.BASE in model.notice
    assert "DEMO MODEL" in model.notice


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({"model": "auto"}, "fourstep pull"),
        ({"model": "someone/model", "vae": "tiny"}, "fourstep pull --model someone/model --vae tiny"),
        ({"model": "sd15", "dtype": "float16"}, "fourstep pull --dtype float16"),
    ],
)
def test_pull_command_says_what_differs_from_the_defaults(settings: dict[str, str], command: str) -> None:
    assert manifest.pull_command(EngineConfig(data_dir="", **settings)) == command

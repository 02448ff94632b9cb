"""Which files, from which places, a configuration is made of. Reads a few small JSON files and decides; loads nothing.

The same decisions serve loading (repositories are looked up in the hub's cache) and fetching (they are looked up on the
hub): the caller says how to open one.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipelines.errors import CheckpointError, NotOnDiskError, OnlyPicklesError, UnreachableError
from pipelines.hub import layout, local_file, sd15
from pipelines.hub.source import FileSource, Folder, read_json
from pipelines.messages import EngineConfig

OpenRepo = Callable[[str], FileSource]

REAL = ("sd15", "auto")  # names of the real weights; `auto` is resolved before this module is asked

_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
_FAMILY_HINT = "Use a Stable Diffusion 1.x checkpoint, fine-tuned or not: the LCM-LoRA makes it a four-step model."


@dataclass(frozen=True)
class Files:
    """Some files of one shelf. Of a module: first its config, then its weights."""

    source: FileSource
    names: tuple[str, ...]

    @property
    def paths(self) -> list[Path]:
        return [self.source.path(name) for name in self.names]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(self.source.sizes[name] for name in self.names)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a model is made of.

    Either `unet` and `text_encoder` (and `vae`) are parts in diffusers layout, or `single_file` holds them; a `vae`
    beside `single_file` replaces the one inside. Without `scheduler`, SD 1.5's own. `safety_checker` and `lora` are
    None where there is to be none. `extras` is what other programs want beside these; nothing here reads it.
    """

    name: str
    single_file: Path | None = None
    unet: Files | None = None
    text_encoder: Files | None = None
    vae: Files | None = None
    tokenizer: Files
    scheduler: Files | None = None
    safety_checker: Files | None = None
    lora: Files | None = None
    extras: Files | None = None

    def files(self) -> Iterator[Files]:
        """All that lie on shelves (so without `single_file`)."""
        values = (getattr(self, field.name) for field in fields(self))
        return (value for value in values if isinstance(value, Files))


def compose(config: EngineConfig, *, half: bool, open_repo: OpenRepo) -> Manifest:
    """The recipe for `config.model` (a hub id, a folder or a file) with its LoRA, VAE and checker.

    `half`: prefer 16-bit files. Raises `NotOnDiskError` where fetching would help, `CheckpointError` elsewhere.
    """
    _check_files(config)
    base = open_repo(sd15.BASE) if config.model in REAL else _open(config.model, open_repo, "--model")
    if isinstance(base, Path):
        return _from_single_file(base, config, half=half, open_repo=open_repo)
    scheduler = _require(base, layout.SCHEDULER, "the scheduler's config")
    unet = _part(base, "unet", half=half)
    _check_family(read_json(base.path(unet.names[0])))
    _check_prediction(read_json(scheduler.paths[0]), base.label)
    return Manifest(
        name=_name(config.model),
        unet=unet,
        text_encoder=_part(base, "text_encoder", half=half),
        vae=_vae(config, base, half=half, open_repo=open_repo),
        tokenizer=_tokenizer(base),
        scheduler=scheduler,
        safety_checker=_safety_checker(config, base, half=half, open_repo=open_repo),
        lora=_lora(config, scheduler, open_repo),
        extras=Files(base, tuple(name for name in layout.EXTRAS if name in base.sizes)),
    )


def pull_command(config: EngineConfig) -> str:
    """The command line that fetches what `config` needs."""
    flags = {"--model": "sd15", "--lora": "auto", "--vae": "full", "--safety-checker": "auto", "--dtype": "auto"}
    values = [config.model, config.lora, config.vae, config.safety_checker, config.dtype]
    if config.model in REAL:
        values[0] = "sd15"
    given = [
        f"{flag} {value}" for (flag, default), value in zip(flags.items(), values, strict=True) if value != default
    ]
    return " ".join(["fourstep pull", *given])


def _name(model: str) -> str:
    """What to call the model in public: of a path only its last part."""
    path = _place(model)
    return "sd15" if model in REAL else path.absolute().name if path.exists() else model


def _place(name: str) -> Path:
    """Return where a name leads on this machine, if it is a path. `~` is the user's home folder."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"{name} begins with the name of no user.", "Give the whole path.") from error


def _from_single_file(path: Path, config: EngineConfig, *, half: bool, open_repo: OpenRepo) -> Manifest:
    """A file brings UNet, VAE and text encoder; the tokenizer lies beside it or comes from the base repository."""
    beside = Folder(path.parent / "tokenizer", label=str(path.parent))
    names = layout.find_tokenizer(beside.sizes, "")
    return Manifest(
        name=_name(config.model),
        single_file=path,
        vae=_vae(config, None, half=half, open_repo=open_repo),
        tokenizer=Files(beside, names) if names else _tokenizer(open_repo(sd15.BASE)),
        safety_checker=_safety_checker(config, None, half=half, open_repo=open_repo),
        lora=_lora(config, None, open_repo),
    )


def _open(name: str, open_repo: OpenRepo, flag: str) -> FileSource | Path:
    """What `name` means: a folder or a file on disk first (the file is returned as it is), then a hub id."""
    path = _place(name or "(nothing)")  # an empty path would be the current folder
    if path.is_dir():
        return Folder(path, label=str(path))
    if path.suffix in _PICKLES:
        raise CheckpointError(
            f"{path} is a pickle: loading one runs whatever code is in it, so fourstep never does.",
            "Use the .safetensors form of the same checkpoint.",
        )
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if path.exists() or path.suffix == ".safetensors" or not _REPO.fullmatch(name):
        what = "is neither a folder nor a .safetensors file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}.", f"Give {flag} a folder, a .safetensors file or a hub id (owner/name).")
    return open_repo(name)


def _part(source: FileSource, folder: str, *, half: bool) -> Files:
    part = _find(source, folder, half=half)
    if part is None:
        raise NotOnDiskError(f"{source.label} has no weights in {folder}.", source.hint)
    return part


def _find(source: FileSource, folder: str, *, half: bool) -> Files | None:
    part = layout.find_part(source.sizes, folder, half=half, label=source.label)
    if part is None:
        return None
    if isinstance(source, Folder):
        for name in part.weights:
            local_file.check_kind(source.path(name))
    return Files(source, (part.config, *part.weights))


def _require(source: FileSource, name: str, what: str) -> Files:
    if name not in source.sizes:
        raise NotOnDiskError(f"{source.label} lacks {what} ({name}).", source.hint)
    return Files(source, (name,))


def _tokenizer(source: FileSource) -> Files:
    names = layout.find_tokenizer(source.sizes)
    if not names:
        raise NotOnDiskError(f"{source.label} has no tokenizer.", source.hint)
    return Files(source, names)


def _vae(config: EngineConfig, base: FileSource | None, *, half: bool, open_repo: OpenRepo) -> Files | None:
    """`full`: the base's own. `tiny`: TAESD, unless the base's own is of that kind. Else a folder or a hub id."""
    if config.vae == "full" or (config.vae == "tiny" and base is not None and _is_tiny(base, half=half)):
        return None if base is None else _part(base, "vae", half=half)
    if config.vae == "tiny":
        return _part(open_repo(sd15.TINY_VAE), "", half=half)
    return _alone(config.vae, "vae", "--vae", half=half, open_repo=open_repo)


def _is_tiny(base: FileSource, *, half: bool) -> bool:
    own = _find(base, "vae", half=half)
    return own is not None and read_json(base.path(own.names[0])).get("_class_name") == "AutoencoderTiny"


def _safety_checker(config: EngineConfig, base: FileSource | None, *, half: bool, open_repo: OpenRepo) -> Files | None:
    """`auto`: the base's own; most fine-tuned checkpoints have none, and then SD 1.5's. Never silently none."""
    if config.safety_checker == "none":
        return None
    try:
        if config.safety_checker != "auto":
            return _alone(config.safety_checker, "safety_checker", "--safety-checker", half=half, open_repo=open_repo)
        found = _first_checker(base, half=half, open_repo=open_repo)
    except (NotOnDiskError, UnreachableError):
        raise
    except CheckpointError as error:
        hint = f"{error.hint} `--safety-checker FOLDER` takes another one, `--safety-checker none` does without."
        raise CheckpointError(error.reason, hint) from error
    if found is None:
        raise NotOnDiskError(
            f"{config.model} comes without a safety checker in safetensors, and none is on disk.",
            f"`{pull_command(config)}` fetches Stable Diffusion 1.5's; `--safety-checker none` does without.",
        )
    return found


def _first_checker(base: FileSource | None, *, half: bool, open_repo: OpenRepo) -> Files | None:
    """The base's own, else Stable Diffusion 1.5's from where it lies. One that is there as pickles only is none."""
    with contextlib.suppress(OnlyPicklesError):
        if base is not None and (own := _find(base, "safety_checker", half=half)):
            return own
    for repo, folder in ((sd15.BASE, "safety_checker"), (sd15.SAFETY_CHECKER, "")):
        with contextlib.suppress(NotOnDiskError, OnlyPicklesError):
            if found := _find(open_repo(repo), folder, half=half):
                return found
    return None


def _alone(name: str, folder: str, flag: str, *, half: bool, open_repo: OpenRepo) -> Files:
    """A module by itself: at the top of its shelf, or in `folder` of a whole checkpoint."""
    source = _open(name, open_repo, flag)
    if isinstance(source, Path):
        raise CheckpointError(f"{source} is a file without its config.", f"Give {flag} a folder with a config.json.")
    return _find(source, folder, half=half) or _part(source, "", half=half)


def _lora(config: EngineConfig, scheduler: Files | None, open_repo: OpenRepo) -> Files | None:
    """`auto`: the LCM-LoRA, unless the base's scheduler says that the base is an LCM already."""
    if config.lora == "none":
        return None
    if config.lora == "auto":
        if scheduler is not None and read_json(scheduler.paths[0]).get("_class_name") == "LCMScheduler":
            return None
        source: FileSource | Path = open_repo(sd15.LCM_LORA)
    else:
        source = _open(config.lora, open_repo, "--lora")
    if isinstance(source, Path):
        return Files(Folder(source.parent, label=str(source.parent)), (source.name,))
    name = layout.find_lora(source.sizes, label=source.label)
    if isinstance(source, Folder):
        local_file.check_lora(source.path(name))
    return Files(source, (name,))


def _check_files(config: EngineConfig) -> None:
    """Refuse files of this machine which are something else than they are given as, before any place is asked."""
    for name, check in ((config.model, local_file.check_model), (config.lora, local_file.check_lora)):
        path = _place(name)
        if path.suffix == ".safetensors" and path.is_file():
            check(path)


def _check_prediction(scheduler: Mapping[str, Any], label: str) -> None:
    """Refuse a base that predicts velocity, unless it is an LCM already, which was distilled with its own scheduler."""
    if scheduler.get("prediction_type") == "v_prediction" and scheduler.get("_class_name") != "LCMScheduler":
        raise CheckpointError(*local_file.v_prediction(label))


def _check_family(unet: Mapping[str, Any]) -> None:
    """Refuse, before gigabytes are fetched or read, a UNet that wants other inputs than SD 1.x's."""
    if unet.get("time_cond_proj_dim") is not None:
        raise CheckpointError(
            "This UNet was distilled with the guidance scale as an input (time_cond_proj_dim), so `guidance_scale` "
            "would not do what the API says.",
            _FAMILY_HINT,
        )
    if unet.get("addition_embed_type") is not None or unet.get("class_embed_type") is not None:
        raise CheckpointError("This UNet wants inputs beyond text, as Stable Diffusion XL's does.", _FAMILY_HINT)
    if (channels := unet.get("in_channels", 4)) != 4:
        raise CheckpointError(f"This UNet takes {channels} channels, not 4: inpainting, perhaps.", _FAMILY_HINT)

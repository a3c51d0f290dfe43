"""A teacher by name: a folder, an id on the Hub, or the one that is embedded in this package."""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from rocket_hf.checkpoint_files import read_json
from rocket_hf.errors import UserError
from rocket_hf.hub import resolve

from .frozen import FrozenTeacher
from .hf_checkpoint import load_vision_model, vision_card, vision_config
from .hf_vision import HFVisionTeacher
from .license import read_license
from .teacher import Resolution
from .vggt import VggtAggregator, VggtConfig, VggtTeacher, vggt_card
from .vggt_checkpoint import load_aggregator

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAFETENSORS = ("model.safetensors", "model-*.safetensors")
PICKLE = "model.pt"  # of VGGT alone, and as tensors alone
READ = ["config.json", "preprocessor_config.json", "processor_config.json", "README.md"]
VGGT_KEYS = {"img_size", "patch_size", "embed_dim"}
EMBEDDED = "embedded"  # the teacher inside this package, which needs no download


def load_teacher(
    name: str,
    revision: str | None = None,
    resolution: Resolution = "camera",
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    compile: bool = False,
) -> FrozenTeacher:
    """VGGT, or any vision transformer of transformers. `compile` runs its blocks through torch.compile.

    On the device "meta" it is there without its weights, which are neither fetched nor read: to look at, and to count.
    """
    if dtype not in DTYPES:
        raise UserError(f"the dtype of a teacher is {' or '.join(DTYPES)}, not {dtype!r}")
    folder = teacher_folder(name, revision, weights=torch.device(device).type != "meta")
    known_as = folder.resolve().name if here(name) else name
    described = read_config(folder, known_as)
    place = DTYPES[dtype], torch.device(device)
    if torch.device(device).type == "meta":
        return without_weights(folder, known_as, described, resolution, DTYPES[dtype])
    if "model_type" in described:
        settings, files = vision_config(folder, known_as), weight_files(folder, known_as)
        card = vision_card(settings, folder, known_as, digest(files), read_license(folder, known_as))
        model, dropped = load_vision_model(folder, settings, known_as, *place)
        teacher: FrozenTeacher = HFVisionTeacher(model, card, resolution, compile)
    elif described.keys() >= VGGT_KEYS:
        config = VggtConfig.from_dict(described)
        (path,) = files = weight_files(folder, known_as, PICKLE)
        aggregator, dropped = load_aggregator(path, config, *place)
        card = vggt_card(config, known_as, digest(files), read_license(folder, known_as))
        teacher = VggtTeacher(aggregator, card, resolution, compile)
    else:
        raise no_teacher(known_as)
    teacher.unused_tensors = dropped
    return teacher


def without_weights(
    folder: Path, name: str, described: dict[str, Any], resolution: Resolution, dtype: torch.dtype
) -> FrozenTeacher:
    license = read_license(folder, name)
    with torch.device("meta"):
        if "model_type" in described:
            settings = vision_config(folder, name)
            card = vision_card(settings, folder, name, "", license)
            return HFVisionTeacher(AutoModel.from_config(settings, dtype=dtype), card, resolution)
        if not described.keys() >= VGGT_KEYS:
            raise no_teacher(name)
        config = VggtConfig.from_dict(described)
        return VggtTeacher(VggtAggregator(config).to(dtype), vggt_card(config, name, "", license), resolution)


def no_teacher(name: str) -> ValueError:
    return ValueError(
        f"config.json of {name} describes no teacher: it has neither the model_type of a vision encoder of "
        f"transformers nor the keys of a VGGT, {', '.join(sorted(VGGT_KEYS))}"
    )


def here(name: str) -> Path | None:
    """The folder of a teacher that need not be fetched."""
    folder = Path(__file__).with_name(EMBEDDED) if name == EMBEDDED else Path(name)
    return folder if folder.is_dir() else None


def teacher_folder(name: str, revision: str | None, weights: bool = True) -> Path:
    """Return the folder of a teacher's files, which are downloaded first if the teacher is on the Hub."""
    local = here(name)
    files = [*READ, *SAFETENSORS, "model.safetensors.index.json"] if weights else READ
    resolved = resolve(local or name, files, revision=revision, kind="teacher")
    if weights and resolved.commit is not None and not safetensors_in(resolved.folder):
        resolve(name, [PICKLE], revision=revision, kind="teacher")  # into the same folder, if the repository has it
    return resolved.folder


def read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        described = read_json(folder / "config.json")
    except FileNotFoundError as error:
        raise UserError(f"{name} cannot be a teacher: it has no config.json") from error
    if not isinstance(described, dict):
        raise UserError(f"config.json of {name} holds no settings")
    return described


def safetensors_in(folder: Path) -> list[Path]:
    return sorted(path for pattern in SAFETENSORS for path in folder.glob(pattern))


def weight_files(folder: Path, name: str, *others: str) -> list[Path]:
    files = safetensors_in(folder) or [folder / other for other in others if (folder / other).exists()]
    if not files:
        wanted = " nor ".join(["model.safetensors", *others])
        raise UserError(f"{name} has no weights that can be read safely: neither shards nor {wanted}")
    return files


def digest(files: list[Path]) -> str:
    """The SHA-256 of a file, or of the list of those of several."""
    each = [file_digest(path) for path in files]
    return each[0] if len(each) == 1 else hashlib.sha256("\n".join(each).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The Hub's cache names large files by their SHA-256, so those need not be read for it."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
        return blob.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Loader of teachers by name: a local folder, a Hub repository, or the teacher embedded in this package."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from rocket_hf.checkpoint_files import read_json
from rocket_hf.errors import UserError
from rocket_hf.files import file_digest
from rocket_hf.hub import resolve

from .frozen import FrozenTeacher
from .hf_checkpoint import load_vision_config, load_vision_model, vision_card
from .hf_vision import HFVisionTeacher
from .license import read_license
from .oracle import ORACLE
from .pretraining.pretrain import build_model
from .teacher import Resolution
from .vggt import VggtAggregator, VggtConfig, VggtTeacher, vggt_card
from .vggt_checkpoint import load_aggregator

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAFETENSORS = ("model.safetensors", "model-*.safetensors")
PICKLED_WEIGHTS = "model.pt"  # read for VGGT only, and without executing any code in it
METADATA_FILES = ["config.json", "preprocessor_config.json", "processor_config.json", "README.md"]
VGGT_KEYS = {"img_size", "patch_size", "embed_dim"}  # keys of config.json that identify a VGGT
EMBEDDED = "embedded"  # the teacher inside this package, which needs no download
UNTRAINED = "embedded-untrained"  # the same model with random weights, as a control: no knowledge, but an image encoder
EMBEDDED_TEACHERS = (EMBEDDED, UNTRAINED)
UNTRAINED_SEED = 0


def load_teacher(
    name: str,
    revision: str | None = None,
    resolution: Resolution = "camera",
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    compile: bool = False,
) -> FrozenTeacher:
    """Load VGGT, or any vision transformer of transformers. `compile` runs its blocks through torch.compile.

    On the device "meta" the teacher has no weights, and none are downloaded or read: enough for sizes and FLOPs.
    """
    if dtype not in DTYPES:
        raise UserError(f"the dtype of a teacher must be {' or '.join(DTYPES)}, got {dtype!r}")
    device = torch.device(device)
    has_weights = device.type != "meta"
    if name == ORACLE:
        raise UserError(
            f"the teacher {ORACLE} reads recorded depth instead of images: build a feature cache with `rocket-hf cache "
            f"build DATASET --teacher {ORACLE} --out FOLDER` and pass --cache FOLDER"
        )
    folder = teacher_folder(name, revision, has_weights)
    name = folder.resolve().name if local_teacher_folder(name) and name != UNTRAINED else name
    config = read_config(folder, name)
    if not has_weights:
        return build_without_weights(folder, name, config, resolution, DTYPES[dtype])
    if name == UNTRAINED:
        return build_untrained(folder, VggtConfig.from_dict(config), resolution, DTYPES[dtype], device, compile)
    if "model_type" in config:
        return load_vision_teacher(folder, name, resolution, DTYPES[dtype], device, compile)
    return load_vggt_teacher(folder, name, VggtConfig.from_dict(config), resolution, DTYPES[dtype], device, compile)


def load_vision_teacher(
    folder: Path, name: str, resolution: Resolution, dtype: torch.dtype, device: torch.device, compile: bool
) -> HFVisionTeacher:
    config, files = load_vision_config(folder, name), find_weights(folder, name)
    card = vision_card(config, folder, name, weights_digest(files), read_license(folder, name))
    model, unused_tensors = load_vision_model(folder, config, name, dtype, device)
    teacher = HFVisionTeacher(model, card, resolution, compile)
    teacher.unused_tensors = unused_tensors
    return teacher


def load_vggt_teacher(
    folder: Path,
    name: str,
    config: VggtConfig,
    resolution: Resolution,
    dtype: torch.dtype,
    device: torch.device,
    compile: bool,
) -> VggtTeacher:
    files = find_weights(folder, name, PICKLED_WEIGHTS)
    if len(files) > 1:
        raise UserError(f"{name} has {len(files)} files of weights: a VGGT is read from one file, model.safetensors")
    aggregator, unused_tensors = load_aggregator(files[0], config, dtype, device)
    card = vggt_card(config, name, weights_digest(files), read_license(folder, name))
    teacher = VggtTeacher(aggregator, card, resolution, compile)
    teacher.unused_tensors = unused_tensors
    return teacher


def build_untrained(
    folder: Path, config: VggtConfig, resolution: Resolution, dtype: torch.dtype, device: torch.device, compile: bool
) -> VggtTeacher:
    """Build the embedded teacher with the random weights from which its training started."""
    aggregator = build_model(config, UNTRAINED_SEED).aggregator
    tensors = b"".join(tensor.numpy().tobytes() for _, tensor in sorted(aggregator.state_dict().items()))
    card = vggt_card(config, UNTRAINED, hashlib.sha256(tensors).hexdigest(), read_license(folder, UNTRAINED))
    return VggtTeacher(aggregator.to(device, dtype), card, resolution, compile)


def build_without_weights(
    folder: Path, name: str, config: dict[str, Any], resolution: Resolution, dtype: torch.dtype
) -> FrozenTeacher:
    """Build a teacher on the device "meta"."""
    license = read_license(folder, name)
    with torch.device("meta"):
        if "model_type" in config:
            vision_config = load_vision_config(folder, name)
            card = vision_card(vision_config, folder, name, "", license)
            model = AutoModel.from_config(vision_config, dtype=dtype, trust_remote_code=False)
            return HFVisionTeacher(model, card, resolution)
        vggt_config = VggtConfig.from_dict(config)
        aggregator = VggtAggregator(vggt_config).to(dtype)
        return VggtTeacher(aggregator, vggt_card(vggt_config, name, "", license), resolution)


def local_teacher_folder(name: str) -> Path | None:
    """Return the folder of a teacher that needs no download; None for a teacher on the Hub."""
    folder = Path(__file__).with_name(EMBEDDED) if name in EMBEDDED_TEACHERS else Path(name)
    return folder if folder.is_dir() else None


def teacher_folder(name: str, revision: str | None, has_weights: bool = True) -> Path:
    """Return the folder of a teacher's files, which are downloaded first if the teacher is on the Hub."""
    local = local_teacher_folder(name)
    files = [*METADATA_FILES, *SAFETENSORS, "model.safetensors.index.json"] if has_weights else METADATA_FILES
    resolved = resolve(local or name, files, revision=revision, kind="teacher")
    if has_weights and resolved.commit is not None and not find_safetensors(resolved.folder):
        # The download goes into the same folder, if the repository has the file.
        resolve(name, [PICKLED_WEIGHTS], revision=revision, kind="teacher")
    return resolved.folder


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read config.json and check that it describes a teacher."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{name} cannot be a teacher: it has no config.json")
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{name} cannot be a teacher: its config.json is not a JSON object")
    if "model_type" not in config and not config.keys() >= VGGT_KEYS:
        raise UserError(
            f"{name} cannot be a teacher: its config.json has neither the model_type of a transformers vision encoder "
            f"nor the keys of a VGGT, {', '.join(sorted(VGGT_KEYS))}"
        )
    return config


def find_safetensors(folder: Path) -> list[Path]:
    return sorted(path for pattern in SAFETENSORS for path in folder.glob(pattern))


def find_weights(folder: Path, name: str, *alternatives: str) -> list[Path]:
    """Return the safetensors files of a folder, or those of the alternatives that exist. Raise if there are none."""
    files = find_safetensors(folder) or [folder / other for other in alternatives if (folder / other).exists()]
    if not files:
        expected = " nor ".join(["model.safetensors", *alternatives])
        raise UserError(f"{name} has no weights in a safe format: it has neither shards nor {expected}")
    return files


def weights_digest(files: list[Path]) -> str:
    """Return the SHA-256 of one file, or a SHA-256 over the digests of several files."""
    digests = [file_digest(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

"""What may be in a published folder. Everything else is refused, by name, before anything is sent anywhere."""

import ast
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import metadata_load
from safetensors import SafetensorError, safe_open

from rocket_hf.errors import UserError
from rocket_hf.export.export_files import shipped_files
from rocket_hf.export.policy_kinds import PROCESSOR_FILES, VLA, Kind, kind_of
from rocket_hf.modeling.robot_adaptation import FILE as ROBOT
from rocket_hf.modeling.self_test import FILE as SELF_TEST

README = "README.md"
POLICY_FILES = (
    "config.json", "model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json",
    SELF_TEST, README,
)  # fmt: skip
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", ROBOT, *PROCESSOR_FILES, README)
NEEDED = (README, SELF_TEST, "config.json", "adapter_config.json", "adapter_model.safetensors", ROBOT)

# What shipped code may import: itself, and what AutoModel's users have or are told to install.
PACKAGES = {"torch", "transformers", "numpy", "huggingface_hub", "tokenizers", "safetensors", "PIL", "timm"}
UNSAFE_MODULES = {"subprocess", "socket", "ctypes", "pickle", "marshal", "shelve", "urllib", "http", "ftplib", "pty"}

SECRETS = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[A-Za-z0-9_-]{24,}|AKIA[0-9A-Z]{16}"
    r"|xox[abp]-[\w-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY"
)
LOCAL_PATH = re.compile(
    r"(?<![\w.:/~-])(?:/(?:home|root|Users|tmp|mnt|media|scratch|data|work|workspace|opt|var|srv|private)/[\w.-]"
    r"|[A-Za-z]:\\\\?[\w.-])|file://"
)
TRAINING_TENSORS = re.compile(r"alignment_head|\.lora_|base_layer|exp_avg|optimizer")
TRAINING_KEYS = {"alignment", "teacher", "optimizer", "student_layers", "teacher_layers", "nested_widths"}
BLIND = {
    "images": "its images are turned into their negatives: it does not look, so look at its cameras and its data",
    "goals": "its goals mark something else: it does not follow them, so look at its data",
}
VOCABULARY = ("vocab", "merges", "added_tokens")  # of a tokenizer: words of a language, not of this machine

PIPELINE = "robotics"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "gemma", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "unlicense", "other",
}  # fmt: skip


def check_policy(folder: Path) -> None:
    """A whole policy, as `AutoModel` loads it. ValueError names the first thing that must not be there."""
    kind = kind_of(folder)
    check_files(folder, (*POLICY_FILES, *kind.beside), kind)
    check_config(folder)
    check_weights(folder, kind)
    check_self_test(folder, kind)
    check_common(folder, kind)


def check_adapter(folder: Path) -> None:
    """A LoRA adapter, as `PeftModel` loads it."""
    check_files(folder, ADAPTER_FILES, VLA)
    config = read_json(folder / "adapter_config.json")
    if not REPOSITORY.fullmatch(config.get("base_model_name_or_path") or "") or not config.get("revision"):
        raise UserError("adapter_config.json must name its base by Hub id and revision")
    check_tensors(folder / "adapter_model.safetensors", re.compile(r"alignment_head|exp_avg|optimizer"))
    check_common(folder, VLA)


def check_common(folder: Path, kind: Kind) -> None:
    for path in sorted(folder.glob("*.py")):
        check_code(path, {other.stem for other in folder.glob("*.py")})
    check_texts(folder)
    check_card(folder / README, kind)


def refuse_links(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UserError(f"{path.relative_to(folder)} is a symbolic link: put the file itself there")


def check_files(folder: Path, allowed: tuple[str, ...], kind: Kind) -> None:
    code = {path.name for path in shipped_files(kind.code)}
    there = sorted(folder.rglob("*"))
    for path in there:
        name = str(path.relative_to(folder))
        if path.is_dir() or not (name in code or any(fnmatch(name, pattern) for pattern in allowed)):
            raise UserError(f"{name} does not belong into a published repository: remove it")
    needed = {name for name in allowed if name in NEEDED} | code
    if missing := sorted(needed - {path.name for path in there}):
        raise UserError(f"{missing[0]} is missing: export the policy again")


# The model


def check_config(folder: Path) -> None:
    values = read_json(folder / "config.json")
    for key in nested_keys(values):
        if key in TRAINING_KEYS:
            raise UserError(f"config.json holds the key {key!r}, which is of training alone: export the policy again")
    if not {"AutoConfig", "AutoModel"} <= values.get("auto_map", {}).keys():
        raise UserError("config.json has no auto_map, so AutoModel would not find the code: export the policy again")
    for place in values["auto_map"].values():
        if "--" in place:
            raise UserError(f"config.json takes its code from another repository ({place}): export the policy again")


def nested_keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from nested_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nested_keys(inner)


def check_weights(folder: Path, kind: Kind) -> None:
    """Every weight of the policy once, finite, of its shape; and nothing else."""
    config = kind.model.config_class.from_pretrained(folder)
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in kind.model(config).state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        shapes = check_tensors(path, TRAINING_TENSORS)
        if twice := sorted(found.keys() & shapes.keys()):
            raise UserError(f"{twice[0]} is in two files: export the policy again")
        found |= shapes
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise UserError(
            f"{len(wrong)} weights are missing, left over or of another shape than config.json says, "
            f"among them {wrong[0]}: export the policy again"
        )


def check_tensors(path: Path, forbidden: re.Pattern[str]) -> dict[str, tuple[int, ...]]:
    """The shapes by name. One tensor at a time is in memory."""
    shapes = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                if forbidden.search(name):
                    raise UserError(f"{path.name} holds {name}, which is of training alone: export the policy again")
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise UserError(f"{name} in {path.name} is not finite: publish an earlier checkpoint")
                shapes[name] = tuple(tensor.shape)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path.name} is no readable safetensors file ({error}): export the policy again") from None
    return shapes


def check_self_test(folder: Path, kind: Kind) -> None:
    check_tensors(folder / SELF_TEST, TRAINING_TENSORS)
    for name, effect in kind.read_self_test(folder / SELF_TEST).effects.items():
        if not 0 < effect < math.inf:
            raise UserError(f"the actions of this policy are the same when {BLIND[name]}, or train it longer")


# Code and texts


def check_code(path: Path, siblings: set[str]) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules, level = [alias.name for alias in node.names], 0
        elif isinstance(node, ast.ImportFrom):
            modules, level = [node.module or ""], node.level
        else:
            continue
        for module in modules:
            top = module.split(".")[0]
            allowed = siblings if level else PACKAGES | sys.stdlib_module_names - UNSAFE_MODULES
            if level > 1 or (module if level else top) not in allowed:
                raise UserError(f"{path.name} imports {'.' * level}{module}, which code on the Hub must not")


def check_texts(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            read_json(path)
        text = text_of(path)
        if secret := SECRETS.search(text):
            raise UserError(f"{path.name} holds what looks like a secret ({secret[0][:6]}...): remove it, revoke it")
        local = LOCAL_PATH.search(text) or re.search(own_folders(), text)
        if local is not None:
            around = text[local.start() : local.end() + 30].split('"')[0].split("\n")[0]
            raise UserError(f"{path.name} names a path of this machine ({around}): take it out")


def text_of(path: Path) -> str:
    """What can be read in a file: of safetensors the metadata, of a tokenizer all but its words."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return json.dumps(file.metadata() or {})
    if path.name == "tokenizer.json":
        values = read_json(path)
        kept = {key: value for key, value in values.items() if key not in VOCABULARY and key != "model"}
        model = {key: value for key, value in values.get("model", {}).items() if key not in VOCABULARY}
        return json.dumps(kept | {"model": model}, ensure_ascii=False)
    if path.name in ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"):
        return ""
    return path.read_text(encoding="utf-8")


def own_folders() -> str:
    """A pattern of the folders in which this process lives."""
    folders = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir()} - {"/"}
    return "|".join(rf"(?<![\w.:/]){re.escape(folder)}/" for folder in sorted(folders))


def read_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise UserError(f"{path.name} holds {constant}, which is no finite number: take it out")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# The card


def check_card(path: Path, kind: Kind) -> None:
    """Its metadata, as the Hub wants it; without asking the Hub."""
    try:
        values = metadata_load(path) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"the metadata of {path.name} is no valid YAML: {' '.join(str(error).split())}") from None
    for name, (fits, wanted) in CARD.items():
        needless = name == "base_model" and not kind.has_base and name not in values
        if not (needless or fits(values.get(name))):
            raise UserError(f"the card needs {name}: {wanted}; it says {values.get(name)!r}")
    if values["license"] == "other" and not values.get("license_name"):
        raise UserError("the card says license: other, so it needs a license_name")
    if not all(math.isfinite(number) for number in numbers(values)):
        raise UserError("the card holds a metric that is no finite number: take it out")
    if "more information needed" in path.read_text(encoding="utf-8").lower():
        raise UserError("the card says that more information is needed: say it, or leave the section out")


def names_one(value: Any) -> bool:
    return isinstance(value, str) and bool(REPOSITORY.fullmatch(value))


def names_several(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(names_one(name) for name in value))


CARD: dict[str, tuple[Callable[[Any], bool], str]] = {
    "license": (lambda value: value in LICENSES, f"one of {', '.join(sorted(LICENSES))}"),
    "pipeline_tag": (lambda value: value == PIPELINE, PIPELINE),
    "base_model": (lambda value: names_one(value), "the Hub id of the model that was trained, like owner/name"),
    "library_name": (lambda value: value in ("transformers", "peft"), "transformers or peft"),
    "datasets": (names_several, "a list of Hub ids"),
    "tags": (
        lambda value: isinstance(value, list) and bool(value) and all(isinstance(tag, str) for tag in value),
        "a list of words",
    ),
}


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, float):
        yield value

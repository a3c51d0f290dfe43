"""Checks of a package before it is published: only files on the allowlist, no secrets, no traces of training.

Every check raises a UserError that names the first problem.
"""

import ast
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from rocket_hf.checkpoint_files import read_json_object
from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import shipped_files
from rocket_hf.foreign_code import check_no_foreign_code
from rocket_hf.hub import REPO_ID
from rocket_hf.hub_cards.cards import EVAL_RESULTS, FIGURES, README, check_card, check_eval_results, numbers
from rocket_hf.hub_cards.facts import CardError, Source
from rocket_hf.modeling.robot_adaptation import ROBOT_FILE
from rocket_hf.modeling.self_test import SELF_TEST_FILE

from .policy_facts import PROCESSOR_FILES, VLA, PolicyKind, read_policy_kind

ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD_FILES = (README, f"{FIGURES}/*.png", EVAL_RESULTS)
POLICY_FILES = (
    "config.json", "model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json",
    SELF_TEST_FILE, *CARD_FILES,
)  # fmt: skip
ADAPTER_FILES = (
    "adapter_config.json", "config.json", ADAPTER_WEIGHTS, ROBOT_FILE, SELF_TEST_FILE, *PROCESSOR_FILES, *CARD_FILES,
)  # fmt: skip
REQUIRED_FILES = (README, SELF_TEST_FILE, "config.json", "adapter_config.json", ADAPTER_WEIGHTS, ROBOT_FILE)
MAX_FIGURE_BYTES = 300_000  # all figures together

SECRETS = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[A-Za-z0-9_-]{24,}|AKIA[0-9A-Z]{16}"
    r"|xox[abp]-[\w-]{10,}|AIza[\w-]{35}|glpat-[\w-]{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})"
    r"|://[^\s/:@\"'<>{}]+:[^\s/@\"'<>{}]+@|-----BEGIN [A-Z ]*PRIVATE KEY"
)
LOCAL_PATH = re.compile(
    r"(?<![\w.:/~-])(?:/(?:home|root|Users|tmp|mnt|media|scratch|data|work|workspace|opt|var|srv|private|lustre|nfs"
    r"|gpfs|beegfs|cephfs|fsx|storage)/[\w.-]"
    r"|[A-Za-z]:\\\\?[\w.-])|file://"
)
TRAINING_TENSORS = re.compile(r"alignment_head|\.lora_|base_layer|exp_avg|optimizer")
ADAPTER_FORBIDDEN_TENSORS = re.compile(r"alignment_head|exp_avg|optimizer")
TRAINING_KEYS = {"alignment", "teacher", "optimizer", "student_layers", "teacher_layers", "nested_widths"}
# Messages for a policy whose actions do not depend on one of its inputs.
IGNORED_INPUTS = {
    "images": "inverting the images leaves the actions unchanged: the policy ignores its cameras. Check the camera "
    "mapping, or train longer",
    "goals": "marking other goals leaves the actions unchanged: the policy ignores its goals. Check the training data, "
    "or train longer",
}
# Packages that published code may import: those that users of AutoModel have, or are told to install.
PACKAGES = {"torch", "transformers", "numpy", "huggingface_hub", "tokenizers", "safetensors", "PIL", "timm"}
UNSAFE_MODULES = {"subprocess", "socket", "ctypes", "pickle", "marshal", "shelve", "urllib", "http", "ftplib", "pty"}
VOCABULARY = ("vocab", "merges", "added_tokens")  # keys of tokenizer.json that may contain anything


def check_policy(folder: Path) -> None:
    """Check a complete policy, which `AutoModel` loads."""
    check_no_foreign_code(folder)
    kind = read_policy_kind(folder)
    check_files(folder, (*POLICY_FILES, *kind.extra_files), kind)
    check_config(folder, kind)
    check_weights(folder, kind)
    check_self_test(folder, kind)
    check_code_and_card(folder, kind)


def check_adapter(folder: Path) -> None:
    """Check a LoRA adapter, which `PeftModel` loads."""
    check_no_foreign_code(folder)
    check_files(folder, ADAPTER_FILES, VLA)
    check_config(folder, VLA)
    read_adapter_base(folder)
    check_tensors(folder / ADAPTER_WEIGHTS, ADAPTER_FORBIDDEN_TENSORS)
    check_self_test(folder, VLA)
    check_code_and_card(folder, VLA)


def read_adapter_base(folder: Path) -> Source:
    """Return the base policy of an adapter: its Hub id and its commit."""
    config = read_json(folder / "adapter_config.json")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not (isinstance(base, str) and REPO_ID.fullmatch(base) and isinstance(revision, str) and revision):
        raise UserError(
            "adapter_config.json must name the base model by Hub id and revision: publish the adapter again"
        )
    return Source(base, revision)


def check_code_and_card(folder: Path, kind: PolicyKind) -> None:
    check_code_files(folder)
    check_figures(folder)
    check_texts(folder)
    try:
        check_card(folder / README, kind.requires_base)
        check_eval_results(folder / EVAL_RESULTS)
    except CardError as error:
        raise UserError(str(error)) from error


def refuse_links(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UserError(f"{path.relative_to(folder)} is a symbolic link: replace it by the file itself")


def check_files(folder: Path, allowed: tuple[str, ...], kind: PolicyKind) -> None:
    """Check that each file is allowed, and that all required files exist."""
    code = {path.name for path in shipped_files(kind.code)}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    folders = {name.rpartition("/")[0] for name in allowed} - {""}
    for name in names:
        is_folder = (folder / name).is_dir()
        if not (name in folders if is_folder else name in code or is_allowed(name, allowed)):
            raise UserError(f"{name} is not allowed in a published repository: remove it")
    required = {name for name in allowed if name in REQUIRED_FILES} | code
    if missing := sorted(required - set(names)):
        raise UserError(f"{missing[0]} is missing: export the policy again")


def is_allowed(name: str, patterns: tuple[str, ...]) -> bool:
    """Match a path with patterns whose wildcards do not match slashes."""
    return any(name.count("/") == pattern.count("/") and fnmatch(name, pattern) for pattern in patterns)


# Configuration, weights and self-test


def check_config(folder: Path, kind: PolicyKind) -> None:
    values = read_json(folder / "config.json")
    for key in nested_keys(values):
        if key in TRAINING_KEYS:
            raise UserError(f"config.json contains the training key {key!r}: export the policy again")
    if values.get("auto_map") != {name: kind.code[name] for name in ("AutoConfig", "AutoModel")}:
        raise UserError("config.json has no auto_map, so AutoModel cannot find the code: export the policy again")


def nested_keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from nested_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nested_keys(inner)


def check_weights(folder: Path, kind: PolicyKind) -> None:
    """Check that the files contain each weight of the policy once, finite and with its shape, and nothing else."""
    config = kind.model.config_class.from_pretrained(folder)
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in kind.model(config).state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        shapes = check_tensors(path, TRAINING_TENSORS)
        if duplicates := sorted(found.keys() & shapes.keys()):
            raise UserError(f"the weight {duplicates[0]} is in two files: export the policy again")
        found |= shapes
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise UserError(
            f"{len(wrong)} weights are missing, unexpected or have another shape than config.json describes, "
            f"among them {wrong[0]}: export the policy again"
        )


def check_tensors(path: Path, forbidden: re.Pattern[str]) -> dict[str, tuple[int, ...]]:
    """Check names and values of a file's tensors, with one tensor in memory at a time; return their shapes."""
    shapes = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (`file` is not a dict)
                if forbidden.search(name):
                    raise UserError(f"{path.name} contains {name}, which belongs to training: export the policy again")
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise UserError(f"{name} in {path.name} is not finite: publish an earlier checkpoint")
                shapes[name] = tuple(tensor.shape)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path.name} is not a readable safetensors file ({error}): export the policy again") from None
    return shapes


def check_self_test(folder: Path, kind: PolicyKind) -> None:
    """Check that the actions depend on the images, and on the goals of ROCKET-2."""
    path = folder / SELF_TEST_FILE
    check_tensors(path, TRAINING_TENSORS)
    for name, effect in kind.read_self_test(path).effects.items():
        if not 0 < effect < math.inf:
            raise UserError(IGNORED_INPUTS[name])


# Code, which is parsed but never executed


def check_code_files(folder: Path) -> None:
    """Check that the code imports only other files of the folder, allowed packages and safe standard modules."""
    paths = code_files(folder)
    for path in paths:
        if path.parent != folder:
            raise UserError(
                f"{path.relative_to(folder)} is code in a subfolder, which published code must not have: remove it"
            )
    for path in paths:
        check_code(path, {other.stem for other in paths})


def check_code(path: Path, siblings: set[str]) -> None:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path.name} is not Python code ({error}): export the policy again") from error
    for node in ast.walk(tree):
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
                raise UserError(
                    f"{path.name} imports {'.' * level}{module}, which published code must not: export the policy again"
                )


def code_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if path.is_file())


def changed_code_files(folder: Path, kind: PolicyKind) -> list[str]:
    """Return the names of the code files that are not those of this version of the package, byte for byte."""
    own = {path.name: path.read_bytes() for path in shipped_files(kind.code)}
    published = {path.relative_to(folder).as_posix(): path.read_bytes() for path in code_files(folder)}
    return sorted(name for name in own.keys() | published.keys() if own.get(name) != published.get(name))


# Texts and figures


def check_figures(folder: Path) -> None:
    paths = sorted((folder / FIGURES).glob("*"))
    for path in paths:
        try:
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{FIGURES}/{path.name} is not a readable PNG file: {error}; publish the policy again"
            ) from error
    if (size := sum(path.stat().st_size for path in paths)) > MAX_FIGURE_BYTES:
        raise UserError(f"the files in {FIGURES}/ have {size:,} bytes, but at most {MAX_FIGURE_BYTES:,} are allowed: "
                         "use smaller images")  # fmt: skip


def check_texts(folder: Path) -> None:
    """Check all text for secrets and for paths of this machine."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".json":
            read_json(path)
        text = text_of(path)
        if secret := SECRETS.search(text):
            raise UserError(
                f"{path.name} contains a possible secret ({secret[0][:6]}...): remove it from the file, and revoke it"
            )
        local = LOCAL_PATH.search(text) or re.search(own_folders(), text)
        if local is not None:
            excerpt = text[local.start() : local.end() + 30].split('"')[0].split("\n")[0]
            raise UserError(f"{path.name} contains a path of this machine ({excerpt}): remove it from the file")


def text_of(path: Path) -> str:
    """Return the text in a file: metadata of safetensors and images; a tokenizer without its vocabulary."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return json.dumps(file.metadata() or {})
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            return json.dumps({str(key): str(value) for key, value in image.info.items()})
    if path.name == "tokenizer.json":
        values = read_json(path)
        kept = {key: value for key, value in values.items() if key not in VOCABULARY and key != "model"}
        model = {key: value for key, value in values.get("model", {}).items() if key not in VOCABULARY}
        return json.dumps(kept | {"model": model}, ensure_ascii=False)
    if path.name in ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"):
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not a UTF-8 text file: export the policy again") from error


def own_folders() -> str:
    """Return a pattern that matches the home, working and temporary folder of this process."""
    folders = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir()} - {"/"}
    return "|".join(rf"(?<![\w.:/]){re.escape(folder)}/" for folder in sorted(folders))


def read_json(path: Path) -> dict[str, Any]:
    values = read_json_object(path, fix="export the policy again")
    for number in numbers(values):
        if not math.isfinite(number):
            raise UserError(f"{path.name} contains {number}, which is not a finite number: remove it")
    return values

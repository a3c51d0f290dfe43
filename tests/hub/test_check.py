"""Tests that the checks reject a folder with any single problem, and name the problem."""

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from rocket_hf.errors import UserError
from rocket_hf.hub_cards.facts import BenchmarkResult, Evaluation
from rocket_hf.publishing.check import check_adapter, check_policy, refuse_links

from .policies import PROVENANCE, tiny_policy, write_published

LIBERO = Evaluation("libero", 48, 50)
FULL_PROVENANCE = replace(
    PROVENANCE,
    evaluations=[LIBERO],
    benchmark_results=[BenchmarkResult("HuggingFaceVLA/libero", "libero_goal", LIBERO)],
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> Path:
    return write_published(tmp_path_factory.mktemp("valid") / "policy", tiny_policy(), FULL_PROVENANCE)


@pytest.fixture
def folder(valid, tmp_path) -> Path:
    """Return a copy of the valid folder, for a test to damage."""
    return shutil.copytree(valid, tmp_path / "policy")


def put(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def in_text(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def in_json(name: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def in_weights(change: Callable[[dict], object], metadata: str = "pt") -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": metadata})

    return damage


def png(width: int, height: int, text: str = "") -> bytes:
    """Return a PNG file of noise with a text in its metadata."""
    metadata = PngInfo()
    metadata.add_text("comment", text)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (width, height), os.urandom(width * height * 3)).save(buffer, "PNG", pnginfo=metadata)
    return buffer.getvalue()


# Token shapes and cluster paths, in parts, because no file of this project may contain one.
MORE_SECRETS = [
    "api_" + "org_" + "a" * 34, "AI" + "za" + "b" * 35, "glp" + "at-" + "c" * 20, "https://ada" + ":secret@host/x",
    ".".join(["ey" + "JhbGciOiJIUzI1", "ey" + "JzdWIiOiIxMjM0", "d" * 43]),
]  # fmt: skip
CLUSTER_PATHS = ["/" + name + "/ada/data" for name in ("lustre", "nfs", "gpfs", "storage", "scratch")]
NAN = torch.tensor([float("nan")] * 16)
SECRET = "hf_" + "a" * 34
HOME = "/" + "home/ada/data"  # in two parts, because no file of this project may contain such a path

PROBLEMS: list[tuple[Callable[[Path], object], str]] = [
    (put("optimizer.pt", ""), "optimizer.pt is not allowed"),
    (put("pytorch_model.bin", ""), "pytorch_model.bin is not allowed"),
    (put(".env", "x"), ".env is not allowed"),
    (put("training_args.json", "{}"), "training_args.json is not allowed"),
    (put("evil.py", "print()"), "evil.py is not allowed"),
    (lambda folder: (folder / "runs").mkdir(), "runs is not allowed"),
    (lambda folder: (folder / "policy_interface.py").unlink(), "policy_interface.py is missing"),
    (lambda folder: (folder / "self_test.safetensors").unlink(), "self_test.safetensors is missing"),
    (in_json("config.json", alignment={"hidden_width": 3}), "the training key 'alignment'"),
    (in_json("config.json", auto_map={"AutoConfig": "configuration_rocket.RocketConfig"}), "has no auto_map"),
    (in_json("config.json", auto_map={"AutoModel": "x.Y"}), "names code that does not belong .*x.Y"),
    (in_json("config.json", auto_map={"AutoConfig": "o/r--x.Y", "AutoModel": "x.Y"}), "names code .*o/r--x.Y"),
    (
        in_weights(lambda weights: weights.update({"alignment_head.x": NAN})),
        "alignment_head.x, which belongs to training",
    ),
    (
        in_weights(lambda weights: weights.update({"policy.x.exp_avg": NAN})),
        "policy.x.exp_avg, which belongs to training",
    ),
    (in_weights(lambda weights: weights.update({"policy.action_in.bias": NAN})), "policy.action_in.bias .* not finite"),
    (in_weights(lambda weights: weights.pop("policy.action_in.bias")), "1 weights are missing.*policy.action_in.bias"),
    (in_weights(lambda weights: weights.update({"policy.extra": NAN * 0})), "unexpected|not finite"),
    (in_weights(lambda weights: None, metadata=SECRET), "model.safetensors contains a possible secret"),
    (put("model.safetensors", "no"), "not a readable safetensors"),
    (in_text("policy_interface.py", "import torch\n", "import lerobot\n"), "policy_interface.py imports lerobot"),
    (
        in_text("policy_interface.py", "import torch\n", "from rocket_hf import tiny\n"),
        "policy_interface.py imports rocket_hf",
    ),
    (in_text("policy_interface.py", "import torch\n", "import subprocess\n"), "policy_interface.py imports subprocess"),
    (
        in_text("policy_interface.py", "import torch\n", "def f():\n    import wandb\n"),
        "policy_interface.py imports wandb",
    ),
    (in_text("policy_interface.py", "import torch\n", "from .gone import x\n"), "policy_interface.py imports .gone"),
    (in_text("policy_interface.py", "import torch\n", "from ..x import y\n"), r"policy_interface.py imports \.\.x"),
    (in_text("README.md", "# policy", f"# policy {SECRET}"), "README.md contains a possible secret"),
    (in_text("README.md", "# policy", f"# policy from {HOME}"), "README.md contains a path of this machine"),
    (in_json("tokenizer_config.json", name_or_path=HOME), "tokenizer_config.json contains a path of this machine"),
    (in_json("processor_config.json", statistics={"a": float("nan")}), "processor_config.json contains nan"),
    (in_text("README.md", "license: apache-2.0\n", ""), "the card needs license"),
    (in_text("README.md", "license: apache-2.0", "license: mine"), "the card needs license: one of .*, got 'mine'"),
    (in_text("README.md", "license: apache-2.0", "license: other"), "needs a license_name"),
    (in_text("README.md", "pipeline_tag: robotics\n", ""), "the card needs pipeline_tag"),
    (in_text("README.md", "base_model: lerobot/pi0_base", "base_model: pi0"), "the card needs base_model"),
    (in_text("README.md", "license:", "score: .nan\nlicense:"), "not a finite number"),
    (in_text("README.md", "license:", "license: ["), "not valid YAML"),
    (in_text("README.md", "# policy", "[More Information Needed]"), "more information needed"),
    (put("config.json", "{"), "config.json is not valid JSON"),
    (put("tokenizer_config.json", "{"), "tokenizer_config.json is not valid JSON"),
    (put("policy_interface.py", "import ("), "policy_interface.py is not Python code"),
    (put("figures/success_rates.png", "GIF89a"), "figures/success_rates.png is not a readable PNG file"),
    (put("figures/notes.txt", ""), "figures/notes.txt is not allowed"),
    (put("figures/model.safetensors", ""), "figures/model.safetensors is not allowed"),
    (lambda folder: (folder / "figures" / "more").mkdir(), "figures/more is not allowed"),
    (lambda folder: (folder / "figures" / "large.png").write_bytes(png(400, 400)), "at most 300,000 are allowed"),
    (
        lambda folder: (folder / "figures" / "a.png").write_bytes(png(2, 2, text=SECRET)),
        "a.png contains a possible secret",
    ),
    (put(".eval_results/more.yaml", ""), ".eval_results/more.yaml is not allowed"),
    (put(".eval_results/rocket_hf.yaml", "- value: 1"), "rocket_hf.yaml is not in the Hub's format"),
    (put(".eval_results/rocket_hf.yaml", "- {dataset: {id: no, task_id: x}, value: 1}"), "needs a Hub dataset id"),
]


def test_valid_folder_passes_all_checks(valid):
    refuse_links(valid)
    check_policy(valid)
    assert (valid / "figures" / "success_rates.png").is_file() and (
        valid / ".eval_results" / "rocket_hf.yaml"
    ).is_file()


@pytest.mark.parametrize(("damage", "message"), PROBLEMS, ids=[message for _, message in PROBLEMS])
def test_folder_with_a_problem_is_rejected(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as refusal:
        check_policy(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", MORE_SECRETS)
def test_tokens_and_passwords_are_found(folder, text):
    in_text("README.md", "# policy", f"# policy {text} ")(folder)
    with pytest.raises(UserError, match=r"README\.md contains a possible secret"):
        check_policy(folder)


@pytest.mark.parametrize("path", CLUSTER_PATHS)
def test_paths_of_clusters_are_found(folder, path):
    in_text("README.md", "# policy", f"# policy from {path} ")(folder)
    with pytest.raises(UserError, match=r"README\.md contains a path of this machine"):
        check_policy(folder)


def test_symbolic_links_are_rejected(folder):
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(folder / "config.json")
    with pytest.raises(ValueError, match=r"README\.md is a symbolic link"):
        refuse_links(folder)


def test_vocabulary_of_tokenizer_may_contain_paths(folder):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"][HOME + "/"] = 500
    path.write_text(json.dumps(values))
    check_policy(folder)


def test_policy_that_ignores_its_images_is_rejected(tmp_path):
    model = tiny_policy(alignment=None)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "image_projection" in name or "projector" in name:
                weight.zero_()
    with pytest.raises(
        ValueError, match="inverting the images leaves the actions unchanged: the policy ignores its cameras"
    ):
        write_published(tmp_path / "blind", model)


def test_adapter_without_pinned_base_is_rejected(valid, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for path in [*valid.glob("*.py"), *valid.glob("*token*"), valid / "processor_config.json", valid / "README.md",
                 valid / "self_test.safetensors", valid / "config.json"]:  # fmt: skip
        shutil.copy(path, folder)
    (folder / "robot.json").write_text("{}")
    save_file({"x": NAN}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": HOME, "revision": None}))
    with pytest.raises(ValueError, match="must name the base model by Hub id and revision"):
        check_adapter(folder)

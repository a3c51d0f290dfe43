"""What must not be published is refused by name, one spoiled folder after the other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rocket_hf.publishing.check import check_adapter, check_policy, refuse_links

from .policies import tiny_policy, write_published


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_published(tmp_path_factory.mktemp("sound") / "policy", tiny_policy())


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(sound, tmp_path / "policy")


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
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": metadata})

    return spoil


NAN = torch.tensor([float("nan")] * 16)
SECRET = "hf_" + "a" * 34
HOME = "/" + "home/ada/data"  # in two parts: no file of ours names such a path

SPOILS: list[tuple[Callable[[Path], object], str]] = [
    (put("optimizer.pt", ""), "optimizer.pt does not belong"),
    (put("pytorch_model.bin", ""), "pytorch_model.bin does not belong"),
    (put(".env", "x"), ".env does not belong"),
    (put("training_args.json", "{}"), "training_args.json does not belong"),
    (put("evil.py", "print()"), "evil.py does not belong"),
    (lambda folder: (folder / "runs").mkdir(), "runs does not belong"),
    (lambda folder: (folder / "contract.py").unlink(), "contract.py is missing"),
    (lambda folder: (folder / "self_test.safetensors").unlink(), "self_test.safetensors is missing"),
    (in_json("config.json", alignment={"hidden_width": 3}), "the key 'alignment', which is of training alone"),
    (in_json("config.json", auto_map={"AutoModel": "x.Y"}), "has no auto_map"),
    (in_json("config.json", auto_map={"AutoConfig": "o/r--x.Y", "AutoModel": "x.Y"}), "from another repository"),
    (in_weights(lambda weights: weights.update({"alignment_head.x": NAN})), "alignment_head.x, which is of training"),
    (in_weights(lambda weights: weights.update({"policy.x.exp_avg": NAN})), "policy.x.exp_avg, which is of training"),
    (in_weights(lambda weights: weights.update({"policy.action_in.bias": NAN})), "policy.action_in.bias .* not finite"),
    (in_weights(lambda weights: weights.pop("policy.action_in.bias")), "1 weights are missing.*policy.action_in.bias"),
    (in_weights(lambda weights: weights.update({"policy.extra": NAN * 0})), "left over|not finite"),
    (in_weights(lambda weights: None, metadata=SECRET), "model.safetensors holds what looks like a secret"),
    (put("model.safetensors", "no"), "no readable safetensors"),
    (in_text("contract.py", "import torch\n", "import lerobot\n"), "contract.py imports lerobot"),
    (in_text("contract.py", "import torch\n", "from rocket_hf import tiny\n"), "contract.py imports rocket_hf"),
    (in_text("contract.py", "import torch\n", "import subprocess\n"), "contract.py imports subprocess"),
    (in_text("contract.py", "import torch\n", "def f():\n    import wandb\n"), "contract.py imports wandb"),
    (in_text("contract.py", "import torch\n", "from .gone import x\n"), "contract.py imports .gone"),
    (in_text("contract.py", "import torch\n", "from ..x import y\n"), r"contract.py imports \.\.x"),
    (in_text("README.md", "# policy", f"# policy {SECRET}"), "README.md holds what looks like a secret"),
    (in_text("README.md", "# policy", f"# policy from {HOME}"), "README.md names a path of this machine"),
    (in_json("tokenizer_config.json", name_or_path=HOME), "tokenizer_config.json names a path of this machine"),
    (in_json("processor_config.json", statistics={"a": float("nan")}), "processor_config.json holds NaN"),
    (in_text("README.md", "license: apache-2.0\n", ""), "the card needs license"),
    (in_text("README.md", "license: apache-2.0", "license: mine"), "the card needs license: one of .*; it says 'mine'"),
    (in_text("README.md", "license: apache-2.0", "license: other"), "needs a license_name"),
    (in_text("README.md", "pipeline_tag: robotics\n", ""), "the card needs pipeline_tag"),
    (in_text("README.md", "base_model: lerobot/pi0_base", "base_model: pi0"), "the card needs base_model"),
    (in_text("README.md", "license:", "score: .nan\nlicense:"), "no finite number"),
    (in_text("README.md", "license:", "license: ["), "no valid YAML"),
    (in_text("README.md", "# policy", "[More Information Needed]"), "more information is needed"),
]


def test_a_sound_folder_passes(sound):
    refuse_links(sound)
    check_policy(sound)


@pytest.mark.parametrize(("spoil", "sentence"), SPOILS, ids=[sentence for _, sentence in SPOILS])
def test_what_does_not_belong_is_refused(folder, spoil, sentence):
    spoil(folder)
    with pytest.raises(ValueError, match=sentence) as refusal:
        check_policy(folder)
    assert "\n" not in str(refusal.value)


def test_links_are_refused(folder):
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(folder / "config.json")
    with pytest.raises(ValueError, match=r"README\.md is a symbolic link"):
        refuse_links(folder)


def test_the_words_of_a_tokenizer_are_no_paths(folder):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"][HOME + "/"] = 500
    path.write_text(json.dumps(values))
    check_policy(folder)


def test_a_policy_that_does_not_look_is_refused(tmp_path):
    model = tiny_policy(alignment=None)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "image_projection" in name or "projector" in name:
                weight.zero_()
    with pytest.raises(ValueError, match="the same when its images are turned into their negatives"):
        write_published(tmp_path / "blind", model)


def test_an_adapter_without_a_pinned_base_is_refused(sound, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for path in [*sound.glob("*.py"), *sound.glob("*token*"), sound / "processor_config.json", sound / "README.md"]:
        shutil.copy(path, folder)
    (folder / "robot.json").write_text("{}")
    save_file({"x": NAN}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": HOME, "revision": None}))
    with pytest.raises(ValueError, match="must name its base by Hub id and revision"):
        check_adapter(folder)

"""Loading teachers by name: folders in the public layout, the Hub's cache, licenses, and error messages."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from rocket_hf import load_teacher
from rocket_hf.bench.measure import resident_memory
from rocket_hf.errors import UserError
from rocket_hf.teachers.frozen import FrozenTeacher
from rocket_hf.teachers.license import license_note, read_license
from rocket_hf.teachers.vggt import VggtAggregator, VggtConfig, VggtTeacher
from tests.tiny_vggt import tiny_vggt_config, write_tiny_vggt

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_tiny_vggt(tmp_path / "tiny-vggt")


def change_tensors(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace or add tensors of the file; None removes a tensor."""
    path = folder / "model.safetensors"
    names = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in (load_file(path) | names).items() if tensor is not None}
    path.unlink()
    save_file(kept, path)


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def features(teacher: FrozenTeacher) -> torch.Tensor:
    images = torch.rand(1, 2, 3, 42, 28, generator=torch.Generator().manual_seed(0))
    return teacher.features(images, [4]).maps[4]


def test_vggt_is_loaded_strictly_without_its_heads(folder):
    teacher = load_teacher(str(folder))
    assert isinstance(teacher, VggtTeacher) and teacher.unused_tensors == ["camera_head.token"]
    weights = load_file(folder / "model.safetensors")
    expected = VggtAggregator(tiny_vggt_config())
    expected.load_state_dict(
        {name.removeprefix("aggregator."): value for name, value in weights.items() if "agg" in name}
    )
    for name, parameter in teacher.module.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name))
        assert not parameter.requires_grad
    card = teacher.card
    assert (card.name, card.license, card.depth, card.width, card.image_size) == ("tiny-vggt", "apache-2.0", 4, 32, 84)
    assert card.weights == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_public_config_of_three_keys_describes_vggt_1b(tmp_path):
    (tmp_path / "config.json").write_text('{"img_size": 518, "patch_size": 14, "embed_dim": 1024}')
    save_file({"aggregator.camera_token": torch.zeros(1, 2, 1, 1024)}, tmp_path / "model.safetensors")
    assert VggtConfig.from_dict(json.loads((tmp_path / "config.json").read_text())) == VggtConfig()
    with pytest.raises(UserError, match=r"model.safetensors lacks aggregator\.\S+ and 1208 more tensors of a VGGT"):
        load_teacher(str(tmp_path))


def test_pickled_vggt_weights_are_loaded_without_executing_code(folder):
    expected = features(load_teacher(str(folder)))
    torch.save(load_file(folder / "model.safetensors"), folder / "model.pt")
    (folder / "model.safetensors").unlink()
    assert torch.equal(features(load_teacher(str(folder))), expected)
    torch.save({"aggregator.camera_token": print}, folder / "model.pt")
    with pytest.raises(UserError, match=r"model.pt cannot be loaded as tensors only, and no code in it was executed"):
        load_teacher(str(folder))


def test_teacher_has_requested_dtype(folder):
    teacher = load_teacher(str(folder), dtype="bfloat16")
    assert teacher.dtype == torch.bfloat16 and features(teacher).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in teacher.module.parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match="the dtype of a teacher must be float32 or bfloat16, got 'float16'"):
        load_teacher(str(folder), dtype="float16")


def test_loading_holds_weights_in_memory_once(tmp_path):
    folder = write_tiny_vggt(tmp_path / "big", embed_dim=512)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak memory VmHWM
    before = resident_memory("VmRSS")
    teacher = load_teacher(str(folder), dtype="bfloat16")
    weights = sum(2 * parameter.numel() for parameter in teacher.module.parameters())
    # The file is float32, twice the size of the weights, and its mapped pages count until the system reclaims them.
    assert resident_memory("VmHWM") - before < 3.3 * weights


# Error messages


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"aggregator__camera_token": None}, "lacks aggregator.camera_token and 0 more tensors of a VGGT"),
        (
            {"aggregator__new": torch.zeros(2)},
            "contains aggregator.new, which is not part of a VGGT of the sizes",
        ),
        ({"gaussian_head__new": torch.zeros(2)}, "contains gaussian_head.new, which is not part of a VGGT"),
        (
            {"aggregator__camera_token": torch.zeros(3)},
            r"aggregator.camera_token in model.safetensors has shape \(3,\), but the",
        ),
    ],
)
def test_missing_unknown_or_misshaped_tensor_raises_with_its_name(folder, tensors, message):
    change_tensors(folder, **tensors)
    with pytest.raises(UserError, match=message):
        load_teacher(str(folder))


def test_truncated_weights_raise(folder, tmp_path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model.safetensors is damaged or incomplete"):
        load_teacher(str(folder))
    dino(tmp_path / "dino")
    path = tmp_path / "dino" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="the weights of dino cannot be loaded as a dinov2: "):
        load_teacher(str(tmp_path / "dino"))


def dino(folder: Path) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}')
    return folder


def test_encoder_with_missing_tensor_raises(tmp_path):
    change_tensors(dino(tmp_path / "dino"), encoder__layer__1__norm1__weight=None)
    with pytest.raises(UserError, match=r"the weights of dino lack encoder.layer.1.norm1.weight and 0 more tensors"):
        load_teacher(str(tmp_path / "dino"))
    change_config(tmp_path / "dino", hidden_size=24)
    with pytest.raises(UserError, match=r"the weights of dino cannot be loaded as a dinov2: "):
        load_teacher(str(tmp_path / "dino"))


def test_encoder_without_pixel_statistics_raises(tmp_path):
    (dino(tmp_path / "dino") / "preprocessor_config.json").unlink()
    with pytest.raises(
        UserError, match=r"dino cannot be a teacher: it has no preprocessor_config.json with image_mean"
    ):
        load_teacher(str(tmp_path / "dino"))
    nested = {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}}
    (tmp_path / "dino" / "processor_config.json").write_text(json.dumps(nested))
    assert load_teacher(str(tmp_path / "dino")).card.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"hidden": 3},
            "cannot be a teacher: its config.json has neither the model_type of a transformers vision encoder",
        ),
        ({"model_type": "nothing"}, "has the model_type 'nothing', which the installed transformers cannot load"),
        ([1], "its config.json is not a JSON object"),
        ({"img_size": 84, "patch_size": 14, "embed_dim": 16, "dept": 4}, "has no key 'dept': did you mean 'depth'"),
    ],
)
def test_unsupported_config_raises(folder, config, message):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_teacher(str(folder))


def test_missing_file_raises_with_its_name(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"tiny-vggt has no weights in a safe format: .* nor model.pt"):
        load_teacher(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"tiny-vggt cannot be a teacher: it has no config.json"):
        load_teacher(str(folder))


# The Hub, from its cache


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_teacher_is_loaded_from_hub_cache_at_revision(folder, hub_cache):
    """The Hub's cache names large files by their SHA-256, which is not computed again."""
    repository = hub_cache / "models--facebook--VGGT-1B"
    for part in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repository / part).mkdir(parents=True)
    (repository / "refs" / "v1").write_text(COMMIT)
    snapshot, blob = repository / "snapshots" / COMMIT, repository / "blobs" / ("ab" * 32)
    (folder / "config.json").rename(snapshot / "config.json")
    (folder / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    card = load_teacher("facebook/VGGT-1B", "v1").card
    assert (card.name, card.weights, card.license) == ("facebook/VGGT-1B", "ab" * 32, "cc-by-nc-4.0")


def test_unknown_name_raises_in_one_line(hub_cache):
    with pytest.raises(
        ValueError, match=r"'nobody/nothing' is not a local folder and cannot be downloaded from the Hub"
    ) as caught:
        load_teacher("nobody/nothing")
    assert len(str(caught.value).splitlines()) == 1


def test_invalid_name_or_revision_raises(folder):
    with pytest.raises(UserError, match="is neither a local folder nor a Hub repository"):
        load_teacher("no/such/folder")
    with pytest.raises(UserError, match="is a folder, which has no revision 'v1'"):
        load_teacher(str(folder), revision="v1")


# Licenses


@pytest.mark.parametrize(
    ("front_matter", "license"),
    [
        ("license: cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("license: other\nlicense_name: dinov3-license", "dinov3-license"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("tags: [vision]", "unknown"),
    ],
)
def test_license_is_read_from_readme(tmp_path, front_matter, license):
    (tmp_path / "README.md").write_text(f"---\n{front_matter}\n---\nText.\n")
    assert read_license(tmp_path, "some") == license


def test_unreadable_readme_raises(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(UserError, match=r"the front matter of .*README.md cannot be read"):
        read_license(tmp_path, "some")


def test_folder_without_readme_has_unknown_license(tmp_path):
    assert read_license(tmp_path, "VGGT-1B") == "unknown"
    assert read_license(tmp_path, "facebook/VGGT-1B") == "cc-by-nc-4.0"


def test_license_note_warns_of_restricted_and_unknown_licenses():
    assert license_note("tiny-vggt", "apache-2.0") == ""
    assert "tiny-vggt is licensed under cc-by-nc-4.0, which forbids commercial use" in license_note(
        "tiny-vggt", "cc-by-nc-4.0"
    )
    assert "The license of the teacher tiny-vggt is unknown" in license_note("tiny-vggt", "unknown")

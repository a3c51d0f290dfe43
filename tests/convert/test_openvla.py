"""Conversion of OpenVLA checkpoints, on tiny folders written with the key names of the public layouts."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rocket_hf.commands import main
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import character_tokenizer

WIDTH, MLP, VOCABULARY, DEPTH = 128, 48, 192, 3
DINO, SIGLIP, TOWER_DEPTH, PATCH, SIDE = 64, 72, 3, 7, 4
ACTION, STATE, HEAD = 7, 8, 40


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape) * 0.2


def tower(prefix: str, width: int, scaled: bool) -> dict[str, torch.Tensor]:
    """Return a timm vision transformer as stored in openvla-7b, with the unused last block and norm."""
    weights = {
        "pos_embed": random(1, SIDE**2, width),
        "patch_embed.proj.weight": random(width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": random(width),
        "norm.weight": random(width),
        "norm.bias": random(width),
    }
    for block in range(TOWER_DEPTH):
        shapes = {
            "norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
            "norm2": (width,), "mlp.fc1": (2 * width, width), "mlp.fc2": (width, 2 * width),
        }  # fmt: skip
        for name, shape in shapes.items():
            weights[f"blocks.{block}.{name}.weight"] = random(*shape)
            weights[f"blocks.{block}.{name}.bias"] = random(shape[0])
        if scaled:
            weights |= {f"blocks.{block}.ls{n}.scale_factor": random(width) for n in (1, 2)}
    if scaled:
        weights |= {"cls_token": random(1, 1, width), "reg_token": random(1, 4, width)}
    else:
        pooling = {"latent": (1, 1, width), "q.weight": (width, width), "kv.weight": (2 * width, width)}
        weights |= {f"attn_pool.{name}": random(*shape) for name, shape in pooling.items()}
    return {f"{prefix}.{name}": weight for name, weight in weights.items()}


def openvla_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    features = DINO + SIGLIP
    weights = tower("vision_backbone.featurizer", DINO, True) | tower("vision_backbone.fused_featurizer", SIGLIP, False)
    widths = [features, 4 * features, WIDTH, WIDTH]
    for n in range(3):
        weights[f"projector.fc{n + 1}.weight"] = random(widths[n + 1], widths[n])
        weights[f"projector.fc{n + 1}.bias"] = random(widths[n + 1])
    model = "language_model.model"
    weights |= {
        f"{model}.embed_tokens.weight": random(VOCABULARY, WIDTH),
        f"{model}.norm.weight": random(WIDTH),
        "language_model.lm_head.weight": random(VOCABULARY, WIDTH),
    }
    for layer in range(DEPTH):
        at = f"{model}.layers.{layer}"
        weights |= {f"{at}.self_attn.{name}_proj.weight": random(WIDTH, WIDTH) for name in "qkvo"}
        weights |= {f"{at}.mlp.{name}_proj.weight": random(MLP, WIDTH) for name in ("gate", "up")}
        weights[f"{at}.mlp.down_proj.weight"] = random(WIDTH, MLP)
        weights |= {f"{at}.{name}.weight": random(WIDTH) for name in ("input_layernorm", "post_attention_layernorm")}
    return weights


def heads() -> dict[str, dict[str, torch.Tensor]]:
    """Return the pickled parts of OpenVLA-OFT, with the names that DistributedDataParallel gives them."""
    action = {
        "layer_norm1": (ACTION * WIDTH,), "fc1": (HEAD, ACTION * WIDTH), "layer_norm2": (HEAD,), "fc2": (ACTION, HEAD),
        **{f"mlp_resnet_blocks.{n}.ffn.0": (HEAD,) for n in (0, 1)},
        **{f"mlp_resnet_blocks.{n}.ffn.1": (HEAD, HEAD) for n in (0, 1)},
    }  # fmt: skip
    state = {"fc1": (WIDTH, STATE), "fc2": (WIDTH, WIDTH)}

    def weights_and_biases(shapes, prefix):
        weights = {f"module.{prefix}{name}.weight": random(*shape) for name, shape in shapes.items()}
        return weights | {f"module.{prefix}{name}.bias": random(shape[0]) for name, shape in shapes.items()}

    return {"action_head": weights_and_biases(action, "model."), "proprio_projector": weights_and_biases(state, "")}


def statistics(*names: str) -> dict:
    def make(dim: int, mask: bool) -> dict:
        values = {"q01": [-1.0 - n for n in range(dim)], "q99": [1.0 + n for n in range(dim)]}
        values |= {"mean": [0.0] * dim, "std": [1.0] * dim, "min": [-9.0] * dim, "max": [9.0] * dim}
        return values | ({"mask": [True] * (dim - 1) + [False]} if mask else {})

    return {name: {"action": make(ACTION, True), "proprio": make(STATE, False), "num_transitions": 9} for name in names}


def write_shards(folder, weights) -> None:
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_openvla(folder):
    folder.mkdir()
    write_shards(folder, openvla_weights())
    config = {
        "model_type": "openvla",
        "n_action_bins": 256,
        "pad_to_multiple_of": 64,
        "text_config": {"model_type": "llama", "hidden_size": WIDTH, "num_attention_heads": 2, "rms_norm_eps": 1e-5},
        "norm_stats": statistics("a", "b"),
    }
    (folder / "config.json").write_text(json.dumps(config | {"n_action_bins": 16}))
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def openvla(tmp_path):
    return write_openvla(tmp_path / "openvla")


def write_oft(folder):
    write_openvla(folder)
    for stem, weights in heads().items():
        torch.save(weights, folder / f"{stem}--150000_checkpoint.pt")
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics("libero_spatial_no_noops")))
    return folder


@pytest.fixture
def oft(tmp_path):
    return write_oft(tmp_path / "openvla")


def convert(family, source, destination, *options) -> int:
    heads = ["--heads", "dino=1", "--heads", "siglip=1"]  # the they do not follow from tensors
    return main(["convert", family, str(source), str(destination), *heads, *options])


def predict_actions(folder) -> torch.Tensor:
    model = RocketForActionPrediction.from_pretrained(folder, alignment=None)
    processor = RocketProcessor.from_pretrained(folder)
    draw = torch.Generator().manual_seed(0)
    images = {name: torch.rand(3, 30, 40, generator=draw) for name in processor.cameras}
    inputs = processor(images=images, task="Open the drawer", state=torch.linspace(-1, 1, STATE))
    return processor.unnormalize_actions(model.predict_action_chunk(**inputs))


def test_converted_oft_predicts_actions_and_report_is_complete(oft, tmp_path):
    assert convert("openvla-oft", oft, tmp_path / "ours") == 0
    actions = predict_actions(tmp_path / "ours")
    assert actions.shape == (1, 8, ACTION) and actions.isfinite().all()
    report = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    names = {*openvla_weights(), *(f"{stem}.{key[7:]}" for stem, weights in heads().items() for key in weights)}
    used = {name for sources in report["mapped"].values() for name in sources}
    assert used | report["dropped"].keys() == names
    assert {name for name in report["dropped"] if "featurizer" not in name} == {"language_model.lm_head.weight"}


@pytest.mark.parametrize("family", ["openvla", "openvla-oft"])
def test_converted_policy_prepares_inputs_as_public_code(oft, tmp_path, family):
    """States and actions are clipped to the quantiles, images resized as by Pillow, and tasks only lowercased."""
    assert convert(family, oft, tmp_path / "ours") == 0
    processor = RocketProcessor.from_pretrained(tmp_path / "ours")
    image = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    inputs = processor(
        images=dict.fromkeys(processor.cameras, image), task="Open the_drawer", state=np.full(STATE, 1e3),
        actions=np.full((1, ACTION), -1e3),
    )  # fmt: skip
    assert inputs["state"].eq(1).all() and inputs["actions"][..., :-1].eq(-1).all()
    expected = Image.fromarray(image).resize((PATCH * SIDE, PATCH * SIDE), Image.Resampling.BICUBIC)
    pixels = inputs["images"][0, 0].permute(1, 2, 0) * 255
    torch.testing.assert_close(pixels, torch.from_numpy(np.array(expected)).float())
    assert processor.prompts(["Open the_drawer"], None)[0].count("open the_drawer?") == 1


def test_oft_weights_are_renamed_correctly(oft, tmp_path):
    convert("openvla-oft", oft, tmp_path / "ours")
    ours, theirs = RocketForActionPrediction.from_pretrained(tmp_path / "ours").state_dict(), openvla_weights()
    featurizer = "vision_backbone.featurizer"
    prefix = torch.cat([theirs[f"{featurizer}.cls_token"][0], theirs[f"{featurizer}.reg_token"][0]])
    assert torch.equal(ours["policy.vision_tower.dino.prefix.weight"], prefix)
    assert torch.equal(ours["policy.vision_tower.dino.position_embedding.weight"], theirs[f"{featurizer}.pos_embed"][0])
    scale = ours["policy.vision_tower.dino.blocks.1.mlp_scale.weight"]
    assert torch.equal(scale, theirs[f"{featurizer}.blocks.1.ls2.scale_factor"])
    assert torch.equal(ours["policy.projector.layers.2.weight"], theirs["projector.fc3.weight"])
    head = torch.load(oft / "action_head--150000_checkpoint.pt")
    assert torch.equal(
        ours["policy.action_head.blocks.1.linear.weight"], head["module.model.mlp_resnet_blocks.1.ffn.1.weight"]
    )


def test_openvla_with_several_statistics_requires_a_choice(openvla, tmp_path, capsys):
    assert convert("openvla", openvla, tmp_path / "ours") == 2
    assert "choose one with --statistics, from a, b" in capsys.readouterr().err
    assert convert("openvla", openvla, tmp_path / "ours", "--statistics", "c") == 2
    assert "has no statistics of the dataset 'c'" in capsys.readouterr().err
    assert convert("openvla", openvla, tmp_path / "ours", "--statistics", "b") == 0
    assert predict_actions(tmp_path / "ours").shape == (1, 1, ACTION)


def test_statistics_come_from_both_files(oft, tmp_path, capsys):
    """dataset_statistics.json applies without a choice, and before norm_stats of config.json for a key in both."""
    path = oft / "dataset_statistics.json"
    own = json.loads(path.read_text())
    own["b"] = json.loads(json.dumps(own["libero_spatial_no_noops"]).replace("-9.0", "-8.0"))
    path.write_text(json.dumps(own))
    assert convert("openvla-oft", oft, tmp_path / "ours") == 2
    message = "from libero_spatial_no_noops, b (dataset_statistics.json) and a (config.json)"
    assert message in capsys.readouterr().err
    for key, minimum in {"a": -9.0, "b": -8.0, "libero_spatial_no_noops": -9.0}.items():
        assert convert("openvla-oft", oft, tmp_path / key, "--statistics", key) == 0
        assert RocketProcessor.from_pretrained(tmp_path / key).statistics["action"]["min"][0] == minimum
    del own["b"]
    path.write_text(json.dumps(own))
    assert convert("openvla-oft", oft, tmp_path / "default") == 0


def test_adapter_is_merged_into_its_base_model(oft, tmp_path, capsys):
    """The merged weights of a linear layer and a convolution match PEFT's formula."""
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for path in oft.iterdir():
        if not path.name.startswith("model"):
            path.rename(tuned / path.name)
    (tuned / "config.json").replace(oft / "config.json")
    (tuned / "config.json").write_text((oft / "config.json").read_text())
    adapter = tuned / "lora_adapter"
    adapter.mkdir()
    linear, patches = "language_model.model.layers.1.mlp.up_proj", "vision_backbone.featurizer.patch_embed.proj"
    torch.manual_seed(1)
    low = {
        f"base_model.model.{linear}.lora_A.weight": random(4, WIDTH),
        f"base_model.model.{linear}.lora_B.weight": random(MLP, 4),
        f"base_model.model.{patches}.lora_A.weight": random(4, 3, PATCH, PATCH),
        f"base_model.model.{patches}.lora_B.weight": random(DINO, 4, 1, 1),
    }
    save_file(low, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))

    assert convert("openvla-oft", tuned, tmp_path / "ours") == 2
    assert "pass the adapter's base model with --base" in capsys.readouterr().err
    assert convert("openvla-oft", tuned, tmp_path / "ours", "--base", str(oft)) == 0
    ours, theirs = RocketForActionPrediction.from_pretrained(tmp_path / "ours").state_dict(), openvla_weights()
    a, b = low[f"base_model.model.{linear}.lora_A.weight"], low[f"base_model.model.{linear}.lora_B.weight"]
    torch.testing.assert_close(ours["policy.layers.1.mlp.up_proj.weight"], theirs[f"{linear}.weight"] + 2 * b @ a)
    a, b = low[f"base_model.model.{patches}.lora_A.weight"], low[f"base_model.model.{patches}.lora_B.weight"]
    expected = theirs[f"{patches}.weight"] + 2 * torch.einsum("or,rchw->ochw", b[:, :, 0, 0], a)
    torch.testing.assert_close(ours["policy.vision_tower.dino.patch_embedding.weight"], expected)


def projectors(layers=("1", "2"), change: str | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    shapes = {"fc1": (24, WIDTH), "fc2": (20, 24), "vlm_norm": (WIDTH,)}
    one = {f"{name}.weight": random(*shape) for name, shape in shapes.items()}
    one |= {f"{name}.bias": random(shape[0]) for name, shape in shapes.items()}
    weights = {f"module.{layer}.0.{name}": weight.clone() for layer in layers for name, weight in one.items()}
    if change:
        weights[change] += 1
    return weights


def test_rocket_projector_shared_by_all_pairs_is_converted_once(oft, tmp_path):
    torch.save(projectors(), oft / "align_projectors--50000_checkpoint.pt")
    assert convert("rocket-openvla", oft, tmp_path / "ours") == 0
    model = RocketForActionPrediction.from_pretrained(tmp_path / "ours")
    assert [student for student, _ in model.alignment_head.pairs] == [1, 2]
    projector = model.alignment_head.projectors[0]
    stored = projectors()
    assert torch.equal(projector.fc2.weight, stored["module.1.0.fc2.weight"])
    assert torch.equal(projector.norm.bias, stored["module.2.0.vlm_norm.bias"])
    batch, targets = model.config.fake_batch(), model.config.fake_targets()
    assert all(loss.isfinite() for loss in model(**batch, targets=targets).losses.values())


def test_different_projectors_are_rejected(oft, tmp_path, capsys):
    torch.save(projectors(change="module.2.0.fc1.bias"), oft / "align_projectors--50000_checkpoint.pt")
    assert convert("rocket-openvla", oft, tmp_path / "ours") == 2
    assert "align_projectors.2.0.fc1.bias differs from align_projectors.1.0.fc1.bias" in capsys.readouterr().err


class PickledCode:
    def __reduce__(self):
        return (open, ("harm", "w"))


def add_code(folder):
    (folder / "action_head--150000_checkpoint.pt").write_bytes(pickle.dumps({"module.x": PickledCode()}))


def remove_head(folder):
    (folder / "action_head--150000_checkpoint.pt").unlink()


def remove_shard(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def add_tensor(folder):
    path = folder / "proprio_projector--150000_checkpoint.pt"
    torch.save(torch.load(path) | {"module.fc3.weight": torch.zeros(1)}, path)


def remove_tensor(folder):
    path = folder / "action_head--150000_checkpoint.pt"
    torch.save({name: weight for name, weight in torch.load(path).items() if "layer_norm2.bias" not in name}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (add_code, "cannot be loaded as tensors only, and no code in it was executed"),
        (remove_head, "contains 0 files action_head--*_checkpoint.pt, expected exactly 1"),
        (remove_shard, "model-00002-of-00002.safetensors is missing"),
        (add_tensor, "has an unexpected tensor proprio_projector.fc3.weight"),
        (remove_tensor, "for example policy.action_head.norm_out.bias"),
    ],
)
def test_damaged_folder_is_reported_and_nothing_is_written(oft, tmp_path, capsys, monkeypatch, damage, message):
    monkeypatch.chdir(tmp_path)
    damage(oft)
    assert convert("openvla-oft", oft, tmp_path / "out" / "ours") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "harm").exists()

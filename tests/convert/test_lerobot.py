"""Conversion of folders written by lerobot: equal actions, complete reports, and messages for damaged folders."""

import json
import os
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

from rocket_hf.bench.lerobot_tiny import CAMERAS, lerobot_policy
from rocket_hf.commands import main
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import PI0_SIZES, SMOLVLA_SIZES, character_tokenizer, tiny_config, tiny_statistics

pytestmark = pytest.mark.needs_lerobot
PI = PI0_SIZES | {"vision_heads": 3}
SMOL = SMOLVLA_SIZES | {"vision_heads": 3, "expert_mlp_width": 256}  # lerobot computes 256 from the expert's width
# Numbers of heads, which do not follow from tensors of these sizes.
HEADS = {"pi0": ["--heads", "vision=3"], "pi05": ["--heads", "vision=3"]}
HEADS["smolvla"] = ["--heads", "vision=3", "--heads", "language=4"]
POLICIES = {
    "pi0": lambda: Pi0Config(variant="pi0", **PI),
    "pi05": lambda: Pi0Config(variant="pi05", **PI),
    "smolvla": lambda: SmolVLAConfig(**SMOL),
}


@pytest.fixture(params=POLICIES)
def lerobot_model(request):
    torch.manual_seed(0)
    policy = lerobot_policy(tiny_config(policy_config=POLICIES[request.param](), alignment=None))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            mean = 1 if request.param == "smolvla" and "norm" in name else 0
            parameter.normal_(mean, 0.2 if parameter.dim() > 1 else 0.1)
    return policy


@pytest.fixture
def source(lerobot_model, tmp_path):
    return save_lerobot_policy(lerobot_model, tmp_path)


def save_lerobot_policy(policy, tmp_path):
    """Write a folder as lerobot-train does: the policy, its preprocessor and its postprocessor."""
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.processor import tokenizer_processor

    folder = tmp_path / "lerobot"
    policy.save_pretrained(folder)
    statistics = tiny_statistics(tiny_config())
    stats = {"observation.state": statistics["state"], "action": statistics["action"]}
    stats = {key: {name: torch.tensor(value) for name, value in each.items()} for key, each in stats.items()}
    with patch.object(tokenizer_processor.AutoTokenizer, "from_pretrained", lambda name: character_tokenizer()):
        processors = make_pre_post_processors(policy.config, dataset_stats=stats)
    for processor in processors:
        processor.save_pretrained(folder)
    policy.processors = processors
    character_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return folder


def policy_type(folder) -> str:
    return json.loads((folder / "config.json").read_text())["type"]


def convert(source, destination, *options, heads=None) -> int:
    tokenizer = str(source.parent / "tokenizer")
    family = policy_type(source)
    arguments = ["convert", f"lerobot-{family}", str(source), str(destination), "--tokenizer", tokenizer]
    given = HEADS[family] if heads is None else [word for part in heads for word in ("--heads", part)]
    return main([*arguments, *given, *options])


def test_converted_policy_predicts_the_same_actions_in_robot_units(lerobot_model, source, tmp_path, capsys):
    assert convert(source, tmp_path / "ours") == 0
    printed = capsys.readouterr().out
    ours = RocketForActionPrediction.from_pretrained(tmp_path / "ours")
    processor = RocketProcessor.from_pretrained(tmp_path / "ours")
    assert f"{ours.num_parameters():,} parameters" in printed

    draw = torch.Generator().manual_seed(0)
    images = {name: torch.rand(3, 40, 64, generator=draw) for name in ("front", "wrist")}
    state, noise = torch.randn(6, generator=draw), torch.randn(1, 4, 8, generator=draw)
    preprocess, postprocess = lerobot_model.processors
    observation = dict(zip(CAMERAS, images.values(), strict=True)) | {"observation.state": state, "task": "open it"}
    expected = postprocess(lerobot_model.predict_action_chunk(preprocess(observation), noise=noise))

    inputs = processor(images=images, task="open it", state=state)
    actions = processor.unnormalize_actions(ours.predict_action_chunk(**inputs, noise=noise))
    torch.testing.assert_close(actions, expected, atol=1e-5, rtol=1e-5)


def test_converted_policy_builds_the_prompts_of_its_source(lerobot_model, source, tmp_path):
    """Only pi0.5 replaces underscores; the treatment of tasks is read from the source's preprocessor."""
    assert convert(source, tmp_path / "ours") == 0
    processor, tasks = RocketProcessor.from_pretrained(tmp_path / "ours"), ["open the_drawer", " close it\n"]
    preprocess, _ = lerobot_model.processors
    for task in tasks:
        observation = {key: torch.rand(3, 40, 64) for key in CAMERAS} | {"observation.state": torch.zeros(6)}
        expected = preprocess(observation | {"task": task})["observation.language.tokens"]
        ours = processor(images={"front": torch.rand(3, 40, 64), "wrist": None}, task=task, state=torch.zeros(6))
        length = int(ours["attention_mask"].sum())  # SmolVLA's preprocessor pads to the longest prompt of a batch
        assert torch.equal(ours["input_ids"][:, :length], expected[:, :length])


def test_report_accounts_for_every_tensor(source, tmp_path):
    assert convert(source, tmp_path / "ours") == 0
    report = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    names = load_file(source / "model.safetensors").keys()
    used = {name for sources in report["mapped"].values() for name in sources}
    assert used | report["dropped"].keys() == set(names)
    assert report["tensors"] == len(report["mapped"]) and report["revision"] == "local"
    assert str(tmp_path) not in json.dumps(report)


def test_bfloat16_policy_is_written_in_shards(source, tmp_path, monkeypatch):
    from rocket_hf.convert import write

    monkeypatch.setattr(write, "SHARD_BYTES", 2**17)
    assert convert(source, tmp_path / "ours", "--dtype", "bfloat16") == 0
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 1
    ours = RocketForActionPrediction.from_pretrained(tmp_path / "ours")
    assert ours.dtype == torch.bfloat16


def test_weight_beyond_the_range_of_a_dtype_is_reported(source, tmp_path, capsys):
    edit(source, lambda weights: weights["model.action_in_proj.bias"].fill_(3.4e38))
    assert convert(source, tmp_path / "ours", "--dtype", "bfloat16") == 2
    printed = capsys.readouterr().err
    assert "model.action_in_proj.bias has values beyond the range of bfloat16: convert with --dtype float32" in printed
    assert not (tmp_path / "ours").exists()


def remove_tensor(folder):
    edit(folder, lambda weights: weights.pop("model.action_in_proj.bias"))


def add_tensor(folder):
    edit(folder, lambda weights: weights.update({"model.surprise": torch.zeros(1)}))


def change_shape(folder):
    edit(folder, lambda weights: weights.update({"model.action_in_proj.bias": torch.zeros(3)}))


def truncate_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def remove_preprocessor(folder):
    (folder / "policy_preprocessor.json").unlink()


def remove_prompt_step(folder):
    path = folder / "policy_preprocessor.json"
    pipeline = json.loads(path.read_text())
    pipeline["steps"] = [
        step for step in pipeline["steps"] if not step["registry_name"].startswith(("pi0", "pi05", "smolvla"))
    ]
    path.write_text(json.dumps(pipeline))


def remove_statistics(folder):
    next(folder.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")).unlink()


def change_policy_type(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"type": "', '"type": "another-'))


def damage_weight(folder):
    edit(folder, lambda weights: weights["model.action_in_proj.bias"].fill_(torch.nan))


def damage_statistics(folder, key="action.mean", value=torch.inf):
    path = next(folder.glob("policy_preprocessor_step_*_normalizer_processor.safetensors"))
    statistics = load_file(path)
    part, _, statistic = key.rpartition(".")
    mode = json.loads((folder / "config.json").read_text())["normalization_mapping"]["ACTION"]
    assert f"{part}.{statistic}" in statistics, mode
    statistics[f"{part}.{statistic}"].view(-1)[2] = value
    save_file(statistics, path)


def reverse_range(folder):
    damage_statistics(folder, "action.q99", -100.0)


def negate_deviation(folder):
    damage_statistics(folder, "action.std", -1.0)


def edit(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_tensor, "has no tensor for 1 of the policy's weights, for example policy.action_in.bias"),
        (add_tensor, "has an unexpected tensor model.surprise"),
        (
            change_shape,
            "model.action_in_proj.bias has shape (3,), but the policy's weight policy.action_in.bias has shape (",
        ),
        (truncate_weights, "model.safetensors is damaged or incomplete"),
        (remove_preprocessor, "policy_preprocessor.json is missing"),
        (damage_weight, "The weight model.action_in_proj.bias contains NaN or infinity"),
        (damage_statistics, "the statistic 'mean' of the action is inf in dimension 2"),
        (reverse_range, "which are reversed"),
        (negate_deviation, "the statistic 'std' of the action is -1 in dimension 2"),
        (remove_prompt_step, "so the form of its prompts is unknown: save the policy again"),
        (remove_statistics, "normalizer_processor.safetensors is missing"),
    ],
)
def test_damaged_folder_is_reported_and_nothing_is_written(source, tmp_path, capsys, damage, message):
    damage(source)
    assert convert(source, tmp_path / "out" / "ours") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_folder_of_another_policy_type_is_rejected(source, tmp_path, capsys):
    expected_type = policy_type(source)
    change_policy_type(source)
    arguments = ["convert", f"lerobot-{expected_type}", str(source), str(tmp_path / "ours")]
    assert main(arguments) == 2
    assert f"this family reads '{expected_type}'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "policy_preprocessor.json"])
def test_malformed_json_is_reported(source, tmp_path, capsys, name):
    arguments = ["convert", f"lerobot-{policy_type(source)}", str(source), str(tmp_path / "ours")]
    (source / name).write_text("{")
    assert main(arguments) == 2
    assert f"{name} is not valid JSON" in capsys.readouterr().err


def test_full_disk_leaves_no_files(source, tmp_path, capsys, monkeypatch):
    from rocket_hf.convert import write

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_file", full)
    assert convert(source, tmp_path / "out" / "ours") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_unsupported_settings_are_rejected(source, tmp_path, capsys):
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"min_period": 1.0}))
    assert convert(source, tmp_path / "ours") == 2
    assert "config.json sets min_period=1.0; only 0.004 is supported" in capsys.readouterr().err


def test_hub_repository_at_a_revision_is_converted(source, tmp_path):
    """The report contains the commit. The repository is read offline from huggingface_hub's cache."""
    family, commit = f"lerobot-{policy_type(source)}", "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "home" / "hub" / "models--you--robot"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1").write_text(commit)
    (repository / "snapshots").mkdir()
    source.rename(repository / "snapshots" / commit)
    arguments = ["convert", family, "you/robot@v1", str(tmp_path / "ours")]
    arguments += ["--tokenizer", str(tmp_path / "tokenizer"), *HEADS[family.removeprefix("lerobot-")]]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "rocket_hf.commands", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert (report["source"], report["revision"]) == ("you/robot", commit)


def test_policy_converted_back_predicts_the_same_actions_in_lerobot(lerobot_model, source, tmp_path):
    """lerobot loads the weights strictly and the processors from the folder; actions in robot units are equal."""
    from lerobot.policies.factory import make_pre_post_processors

    assert convert(source, tmp_path / "ours") == 0
    tokenizer = str(source.parent / "tokenizer")
    arguments = ["convert", "to-lerobot", str(tmp_path / "ours"), str(tmp_path / "back"), "--tokenizer", tokenizer]
    assert main(arguments) == 0

    settings = RocketForActionPrediction.from_pretrained(tmp_path / "ours").config
    reloaded = lerobot_policy(settings)
    with torch.no_grad():
        for parameter in reloaded.parameters():
            parameter.fill_(float("nan"))
    reloaded.load_state_dict(load_file(tmp_path / "back" / "model.safetensors"), strict=True)
    original_config = lerobot_model.config
    config = type(original_config).from_pretrained(tmp_path / "back")
    assert config.type == original_config.type
    assert config.image_features.keys() == original_config.image_features.keys()
    preprocess, postprocess = make_pre_post_processors(config, pretrained_path=str(tmp_path / "back"))
    observation = {name: torch.rand(3, 40, 64) for name in CAMERAS}
    observation |= {"observation.state": torch.randn(6), "task": "open it"}
    noise = torch.randn(1, 4, 8)
    original_preprocess, original_postprocess = lerobot_model.processors
    expected = lerobot_model.predict_action_chunk(original_preprocess(dict(observation)), noise=noise)
    expected = original_postprocess(expected)
    actions = postprocess(reloaded.predict_action_chunk(preprocess(dict(observation)), noise=noise))
    torch.testing.assert_close(actions, expected, atol=1e-6, rtol=1e-5)


def test_missing_source_is_reported(tmp_path, capsys):
    assert main(["convert", "lerobot-pi0", str(tmp_path / "nothing"), str(tmp_path / "ours")]) == 2
    assert "neither a local folder nor a Hub repository" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "value"),
    [("clip_normalized", True), ("interpolation", "bicubic"), ("prompt_template", "{task}"), ("resize", "stretch")],
)
def test_preparation_that_lerobot_does_not_have_is_not_dropped_silently(setting, value, tmp_path, capsys):
    from rocket_hf.export.policy_folder import export_policy

    config = tiny_config(alignment=None)
    processor = RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config), **{setting: value})
    folder = export_policy(RocketForActionPrediction(config), processor, tmp_path / "policy")
    assert main(["convert", "to-lerobot", str(folder), str(tmp_path / "back")]) == 2
    assert f"The processor of this policy has {setting}={value!r}" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_folder_without_a_policy_cannot_be_converted_to_lerobot(tmp_path, capsys):
    assert main(["convert", "to-lerobot", str(tmp_path), str(tmp_path / "back")]) == 2
    assert "is not a policy: it has no config.json" in capsys.readouterr().err

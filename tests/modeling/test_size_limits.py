"""Numbers in a downloaded configuration, processor or image cannot fill the memory or keep a machine busy."""

import dataclasses
import json
import resource

import pytest
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from rocket_hf.commands import main
from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import export_policy
from rocket_hf.modeling.configuration_openvla import OpenVLAPolicyConfig
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.size_limits import MAX_OTHER_SIZE, MAX_SIZES
from rocket_hf.tiny import character_tokenizer, tiny_config, tiny_statistics

from .rocket2_tiny import random_rocket2

BOMB = 15 * 2**32  # a multiple of the numbers of heads, which transformers checks first
VLA_CONFIGS = (Pi0Config, SmolVLAConfig, OpenVLAPolicyConfig)
SIZES = [
    (config, field.name)
    for config in VLA_CONFIGS
    for field in dataclasses.fields(config)
    if field.type is int and field.name in config.declared_keys() and not field.name.endswith("token_id")
]


@pytest.mark.parametrize(("config", "name"), SIZES)
def test_every_size_of_a_backbone_has_a_limit(config, name):
    limit = MAX_SIZES.get(name, MAX_OTHER_SIZE)
    assert getattr(config(), name) * 4 <= limit or name == "denoising_steps", "public policies are far below the limits"
    message = (
        rf"{name} must be at most {limit}, got {BOMB}: check where|\(960|4096\) is not a multiple of the number of "
    )
    with pytest.raises(StrictDataclassError, match=message):
        config(**{name: BOMB})


@pytest.mark.parametrize("name", ["state_dim", "action_dim", "chunk_size"])
def test_every_size_of_a_robot_has_a_limit(name):
    with pytest.raises(StrictDataclassError, match=f"RocketConfig.{name} must be at most"):
        RocketConfig(policy_config=OpenVLAPolicyConfig(), **{name: BOMB})  # a backbone without limits of its own


@pytest.mark.parametrize("name", ["rgb_depth", "spatial_layers", "temporal_layers", "window_steps", "width", "heads"])
def test_every_size_of_rocket2_has_a_limit(name):
    with pytest.raises(StrictDataclassError, match=f"Rocket2Config.{name} must be at most"):
        Rocket2Config(**{name: BOMB})
    with pytest.raises(StrictDataclassError, match=r"Rocket2Config\.image_size must be at most 4096"):
        Rocket2Config(image_size=[160_000, 160_000])


@pytest.mark.parametrize("name", ["image_size", "max_prompt_length", "state_dim", "action_dim"])
def test_every_size_of_a_processor_has_a_limit(name, tmp_path):
    config = tiny_config()
    RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config)).save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    for value, message in ((BOMB, "must be at most"), (0, "must be at least 1"), ("9", "must be an integer, got '9'")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        with pytest.raises(UserError, match=f"RocketProcessor.{name} {message}"):
            RocketProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "template",
    [
        "{task:>999999999}\n", "{task!r}", "{task.__class__}", "{task[0]}", "{0}", "{}", "{tasks}", "{task:{state}}",
        "{task", "{state:9999999}",
    ],
)  # fmt: skip
def test_prompt_template_may_only_contain_plain_placeholders(template):
    config = tiny_config()
    with pytest.raises(UserError, match="prompt_template"):
        RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config), prompt_template=template)


def test_braces_and_placeholders_in_tasks_are_text():
    config = tiny_config()
    processor = RocketProcessor.for_config(
        config, character_tokenizer(), tiny_statistics(config), prompt_template="{{x}} {task}"
    )
    assert processor.prompts(["{task:>9} {0}"], None) == ["{x} {task:>9} {0}"]


@pytest.fixture(params=["one file", "shards"])
def policy(request, tmp_path):
    """Folder of a policy, and the largest of its weights' files."""
    model = RocketForActionPrediction(tiny_config())
    model.save_pretrained(tmp_path, max_shard_size="5GB" if request.param == "one file" else "100KB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (request.param == "shards")
    return tmp_path


def change_policy_config(folder, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["policy_config"] |= changes
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("changes", [{"vocab_size": 2_000_000}, {"width": 100_000}, {"expert_width": 100_000}])
def test_sizes_that_do_not_fit_the_weights_are_rejected_before_memory_is_allocated(policy, changes):
    """The changed sizes are within the limits, but would need 250 megabytes to 4 gigabytes."""
    change_policy_config(policy, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"these weights do not fit the configuration: \d+ of another shape"):
        RocketForActionPrediction.from_pretrained(policy)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kilobytes < 100_000


def test_more_layers_than_the_weights_have_are_rejected(policy):
    change_policy_config(policy, depth=40)
    with pytest.raises(UserError, match=r"these weights do not fit the configuration: \d+ missing"):
        RocketForActionPrediction.from_pretrained(policy)


def test_heads_for_training_may_still_be_missing_or_superfluous(policy):
    assert RocketForActionPrediction.from_pretrained(policy, alignment=None).alignment_head is None
    inference = policy / "inference"
    RocketForActionPrediction.from_pretrained(policy, alignment=None).save_pretrained(inference)
    alignment = tiny_config().alignment
    assert RocketForActionPrediction.from_pretrained(inference, alignment=alignment).alignment_head is not None


def test_shard_outside_of_the_folder_is_not_read(policy):
    path = policy / "model.safetensors.index.json"
    if not path.is_file():
        pytest.skip("the weights are in one file")
    index = json.loads(path.read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = "../secret.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names the file '\.\./secret.safetensors', which is not in its folder"):
        RocketForActionPrediction.from_pretrained(policy)


def test_rocket2_checks_sizes_against_its_weights(tmp_path):
    random_rocket2().save_pretrained(tmp_path)
    Rocket2ForActionPrediction.from_pretrained(tmp_path, auxiliary_heads=[])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"interactions": 100_000}))
    with pytest.raises(UserError, match="these weights do not fit the configuration: 1 of another shape: interaction"):
        Rocket2ForActionPrediction.from_pretrained(tmp_path)


def test_command_prints_one_sentence_for_a_bomb(tmp_path, capsys):
    config = tiny_config(alignment=None)
    processor = RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config))
    folder = export_policy(RocketForActionPrediction(config), processor, tmp_path / "policy")
    change_policy_config(folder, depth=BOMB)
    capsys.readouterr()
    assert main(["convert", "to-lerobot", str(folder), str(tmp_path / "lerobot")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"Pi0Config.depth must be at most 512, got {BOMB}" in lines[0]
    assert not (tmp_path / "lerobot").exists()


def test_weights_whose_file_is_damaged_are_reported(policy):
    file = max(policy.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    weights = load_file(file)
    save_file(weights, file, metadata={"format": "pt"})
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        RocketForActionPrediction.from_pretrained(policy)

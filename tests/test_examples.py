"""Tests of examples/: every script and the notebook run without arguments, on a CPU and without a network."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = {
    "use_policy.py": "actions of the next 10 steps",
    "custom_training_loop.py": "policy written to",
    "adapt_to_new_robot.py": "action dimensions of the adapted policy: 3",
    "evaluate_and_compare.py": "95 % interval",
}
NOTEBOOK = "rocket_from_nothing.ipynb"
MAXIMUM_LINES = 60


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {*SCRIPTS, NOTEBOOK}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_short_and_its_docstring_shows_how_to_run_it(name):
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAXIMUM_LINES
    assert f"python examples/{name}" in text.partition('"""\n')[0]


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_runs_without_arguments(name, tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert SCRIPTS[name] in done.stdout


def test_notebook_runs_from_nothing_to_a_loaded_policy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(EXAMPLES / NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "actions (1, 10, 4), distance from the published actions 0.0" in outputs[-1]["text"]


def test_notebook_is_stored_without_outputs():
    notebook = nbformat.read(EXAMPLES / NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None

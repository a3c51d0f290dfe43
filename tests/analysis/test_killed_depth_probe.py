"""Depth probes that are killed with SIGKILL and resumed."""

import json
import shutil
import signal
import subprocess
import sys
import time

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rocket_hf.commands import main as rocket_hf


def change_errors(path):
    """Make all errors of a stored probe 0.125."""
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors | {"relative": torch.full_like(tensors["relative"], 0.125)}, path, metadata)


def test_killed_depth_analysis_resumes_to_the_same_report(shared, train, rgbd, tmp_path, capsys):
    words = ["analyze", "depth", str(shared), str(train("other", run__seed=1)), "--dataset", str(rgbd)]
    words += ["--samples", "24", "--batch-size", "1", "--out"]
    uninterrupted, killed, changed = (tmp_path / name for name in ("uninterrupted", "killed", "changed"))
    assert rocket_hf([*words, str(uninterrupted)]) == 0
    command = [sys.executable, "-m", "rocket_hf.commands", *words, str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 300
    while not list(killed.glob(".probe-*.safetensors")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "depth.json").exists()

    shutil.copytree(killed, changed)
    assert rocket_hf([*words, str(killed)]) == 0
    for name in ("depth.json", "depth.csv"):
        assert (killed / name).read_text() == (uninterrupted / name).read_text()
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in uninterrupted.iterdir())

    # Changed errors appear in the report, so the finished probe was not repeated.
    change_errors(next(changed.glob(".probe-*.safetensors")))
    assert rocket_hf([*words, str(changed)]) == 0
    errors = json.loads((changed / "depth.json").read_text())["errors_by_episode"]
    assert {error for row in errors["shared"] for error in row} == {0.125}
    assert errors["untrained"] == json.loads((killed / "depth.json").read_text())["errors_by_episode"]["untrained"]
    capsys.readouterr()

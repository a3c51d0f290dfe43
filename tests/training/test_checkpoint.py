"""Checkpoints: whole or not there, whatever happens; the last ones and the best are kept; what is torn is said."""

import json
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import nn

from rocket_hf.training.checkpoint import Checkpoints, Progress, prepare_state
from rocket_hf.training.optimization import MovingAverage, make_optimizer
from rocket_hf.training.recipe import OptimizerConfig

from .conftest import forget_processes


class Robot(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.policy = nn.ModuleDict({"action_out": nn.Linear(width, width)})


def parts(width: int = 8, value: float = 1.0):
    """A model whose weights are all `value`, with its optimizer and its average."""
    robot = Robot(width)
    for weight in robot.parameters():
        nn.init.constant_(weight, value)
    optimizer = make_optimizer(robot, OptimizerConfig())
    prepare_state(optimizer)
    return robot, optimizer, MovingAverage(robot, 0.9)


def saved(checkpoints: Checkpoints, step: int, width: int = 8, **progress) -> Path:
    return checkpoints.save(process(), *parts(width, float(step)), Progress(step=step, **progress))


def process():
    """All that a checkpoint asks of an accelerator: its device, its rank, and whether it is the main process."""
    return PartialState(cpu=True)


def values(folder: Path, name: str = "model") -> set[float]:
    return {
        number for tensor in load_file(folder / f"{name}.safetensors").values() for number in tensor.unique().tolist()
    }


@pytest.fixture(autouse=True)
def clean_processes():
    yield
    forget_processes()


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 6):
        saved(checkpoints, step, best_step=2 if step >= 2 else None)
    assert checkpoints.steps() == [2, 4, 5]
    assert [values(checkpoints.path(step)) for step in checkpoints.steps()] == [{2.0}, {4.0}, {5.0}]
    saved(checkpoints, 6, best_step=6)
    assert checkpoints.steps() == [5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]


def test_everything_comes_back(tmp_path):
    checkpoints, (robot, optimizer, average) = Checkpoints(tmp_path, 1), parts()
    for weight in robot.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    average.update(robot)
    torch.rand(3)
    checkpoints.save(process(), robot, optimizer, average, Progress(7, 3, 1, 5, 0.25))
    drawn = torch.rand(2)
    again, optimizer_again, average_again = parts(value=9.0)
    torch.manual_seed(99)
    progress = checkpoints.load(7, process(), again, optimizer_again, average_again)
    assert progress == Progress(7, 3, 1, 5, 0.25)
    assert torch.equal(torch.rand(2), drawn)
    for (name, one), (_, other) in zip(robot.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(average.weights[name], average_again.weights[name])
        for key, value in optimizer.state[one].items():
            assert torch.equal(optimizer_again.state[other][key], value), key


def save_in_a_loop(folder: Path) -> None:
    torch.set_num_threads(1)
    checkpoints, step = Checkpoints(folder, 2), 0
    while True:
        step += 1
        saved(checkpoints, step, width=300, best_step=1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kills", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_a_whole_last_checkpoint(tmp_path, kills):
    draw, torn = random.Random(kills), 0
    for number in range(kills):
        folder = tmp_path / str(number)
        saving = multiprocessing.get_context("fork").Process(target=save_in_a_loop, args=(folder,))
        saving.start()
        while not Checkpoints(folder, 2).steps():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        saving.kill()
        saving.join()
        assert saving.exitcode == -signal.SIGKILL
        checkpoints = Checkpoints(folder, 2)
        steps = checkpoints.steps()
        torn += any(path.name.startswith(".") for path in folder.iterdir())
        for name in ("model", "average"):
            assert values(checkpoints.path(steps[-1]), name) == {float(steps[-1])}
        robot, optimizer, average = parts(300)
        assert checkpoints.load(steps[-1], process(), robot, optimizer, average).step == steps[-1]
        saved(checkpoints, steps[-1] + 1, width=300, best_step=1)
        assert not any(path.name.startswith(".") for path in folder.iterdir())
    assert kills < 10 or torn


def test_a_write_that_fails_leaves_the_previous_checkpoint_and_says_so(tmp_path, limit_files):
    checkpoints = Checkpoints(tmp_path, keep=1)
    saved(checkpoints, 1, width=100)
    limit_files(10_000)
    with pytest.raises(OSError, match=r"the checkpoint of step 2 could not be written to .*step 1 is whole") as caught:
        saved(checkpoints, 2, width=100)
    assert "\n" not in str(caught.value)
    assert checkpoints.steps() == [1] and values(checkpoints.path(1)) == {1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_without_an_earlier_one_it_says_so(tmp_path, limit_files):
    limit_files(10_000)
    with pytest.raises(OSError, match="there is no earlier one"):
        saved(Checkpoints(tmp_path / "new", keep=1), 2, width=100)


# What cannot be resumed


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-30])


def gone(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def foreign(folder: Path) -> None:
    save_file({"policy.other.weight": torch.zeros(2)}, folder / "model.safetensors")


def reshaped(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"policy.action_out.bias": torch.zeros(3)}, folder / "model.safetensors")


def garbled(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 3, "skip')


def of_another_version(folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps({"step": 3, "epoch": 1}))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (cut, "model.safetensors cannot be read"),
        (gone, "optimizer.safetensors cannot be read"),
        (foreign, "is of another model or recipe: 3 tensors differ, among them policy.action_out."),
        (reshaped, "is of another model or recipe: policy.action_out.bias is (3,) there and (8,) here"),
        (garbled, "state.json cannot be read"),
        (of_another_version, "state.json cannot be read"),
    ],
)
def test_a_torn_or_foreign_checkpoint_is_one_sentence(tmp_path, spoil, sentence):
    checkpoints = Checkpoints(tmp_path, 1)
    spoil(saved(checkpoints, 3))
    with pytest.raises(ValueError) as caught:
        checkpoints.load(3, process(), *parts())
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)

"""Checkpoints: atomic writes, which checkpoints are kept, restored state, and errors of damaged checkpoints."""

import json
import multiprocessing
import random
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import nn

from rocket_hf.errors import UserError
from rocket_hf.training.checkpoint import Checkpoints, Progress
from rocket_hf.training.optimization import MovingAverage, create_adam_state, create_optimizer
from rocket_hf.training.recipe import OptimizerConfig
from rocket_hf.training.vla.parts import part_of

from .conftest import reset_accelerate_state


class TinyModel(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.policy = nn.ModuleDict({"action_out": nn.Linear(width, width)})


def training_state(width: int = 8, value: float = 1.0):
    """Return a model whose weights all equal `value`, its optimizer and its moving average."""
    model = TinyModel(width)
    for weight in model.parameters():
        nn.init.constant_(weight, value)
    optimizer = create_optimizer(model, OptimizerConfig(), part_of)
    create_adam_state(optimizer)
    return model, optimizer, MovingAverage(model, 0.9)


def save_checkpoint(checkpoints: Checkpoints, step: int, width: int = 8, **progress) -> Path:
    return checkpoints.save(single_process(), *training_state(width, float(step)), Progress(step=step, **progress))


def single_process():
    """Return an object with the device and rank that checkpoints read from an accelerator."""
    return PartialState(cpu=True)


def unique_values(folder: Path, name: str = "model") -> set[float]:
    return {
        number for tensor in load_file(folder / f"{name}.safetensors").values() for number in tensor.unique().tolist()
    }


@pytest.fixture(autouse=True)
def reset_accelerate():
    yield
    reset_accelerate_state()


def test_latest_and_best_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 6):
        save_checkpoint(checkpoints, step, best_step=2 if step >= 2 else None)
    assert checkpoints.steps() == [2, 4, 5]
    assert [unique_values(checkpoints.path(step)) for step in checkpoints.steps()] == [{2.0}, {4.0}, {5.0}]
    save_checkpoint(checkpoints, 6, best_step=6)
    assert checkpoints.steps() == [5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]


def test_loading_restores_weights_optimizer_average_and_random_state(tmp_path):
    checkpoints, (model, optimizer, average) = Checkpoints(tmp_path, 1), training_state()
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    average.update(model)
    torch.rand(3)
    checkpoints.save(single_process(), model, optimizer, average, Progress(7, 3, 1, 5, 0.25))
    drawn = torch.rand(2)
    restored, restored_optimizer, restored_average = training_state(value=9.0)
    torch.manual_seed(99)
    progress = checkpoints.load(7, single_process(), restored, restored_optimizer, restored_average)
    assert progress == Progress(7, 3, 1, 5, 0.25)
    assert torch.equal(torch.rand(2), drawn)
    for (name, one), (_, other) in zip(model.named_parameters(), restored.named_parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(average.weights[name], restored_average.weights[name])
        for key, value in optimizer.state[one].items():
            assert torch.equal(restored_optimizer.state[other][key], value), key


def save_in_a_loop(folder: Path) -> None:
    torch.set_num_threads(1)
    checkpoints, step = Checkpoints(folder, 2), 0
    while True:
        step += 1
        save_checkpoint(checkpoints, step, width=300, best_step=1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kills", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_last_checkpoint_is_intact_after_a_kill_at_any_time(tmp_path, kills):
    draw, interrupted_writes = random.Random(kills), 0
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
        interrupted_writes += any(path.name.startswith(".") for path in folder.iterdir())
        for name in ("model", "average"):
            assert unique_values(checkpoints.path(steps[-1]), name) == {float(steps[-1])}
        state = training_state(300)
        assert checkpoints.load(steps[-1], single_process(), *state).step == steps[-1]
        save_checkpoint(checkpoints, steps[-1] + 1, width=300, best_step=1)
        assert not any(path.name.startswith(".") for path in folder.iterdir())
    assert kills < 10 or interrupted_writes


def test_failed_write_is_reported_and_leaves_the_previous_checkpoint(tmp_path, limit_files):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save_checkpoint(checkpoints, 1, width=100)
    limit_files(10_000)
    with pytest.raises(
        UserError, match=r"the checkpoint of step 2 could not be written to .*step 1 is intact"
    ) as caught:
        save_checkpoint(checkpoints, 2, width=100)
    assert "\n" not in str(caught.value)
    assert checkpoints.steps() == [1] and unique_values(checkpoints.path(1)) == {1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_failed_first_write_is_reported(tmp_path, limit_files):
    limit_files(10_000)
    with pytest.raises(UserError, match="there is no earlier checkpoint"):
        save_checkpoint(Checkpoints(tmp_path / "new", keep=1), 2, width=100)


# Damaged checkpoints


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-30])


def flip_exponent_bit(folder: Path) -> None:
    """Flip one bit, so that the file is valid, and one weight 2**64 times larger."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0b0001_0000
    path.write_bytes(content)


def change_best_step(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"best_step": 2}))


def remove_optimizer(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def remove_checksums(folder: Path) -> None:
    """Make a checkpoint as version 0.1.0 wrote it."""
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({key: state[key] for key in asdict(Progress())}))


def replace_weights(folder: Path) -> None:
    remove_checksums(folder)
    save_file({"policy.other.weight": torch.zeros(2)}, folder / "model.safetensors")


def reshape_bias(folder: Path) -> None:
    remove_checksums(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"policy.action_out.bias": torch.zeros(3)}, folder / "model.safetensors")


def truncate_state(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 3, "skip')


def write_unknown_state(folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps({"step": 3, "epoch": 1}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_weights, "model.safetensors cannot be read, its checksum differs"),
        (flip_exponent_bit, "model.safetensors cannot be read, its checksum differs"),
        (change_best_step, "state.json cannot be read, its values differ from the checksum in it"),
        (remove_optimizer, "optimizer.safetensors cannot be read"),
        (replace_weights, "belongs to another model or recipe: 3 tensors differ, for example policy.action_out."),
        (
            reshape_bias,
            "belongs to another model or recipe: policy.action_out.bias has shape (3,) in the checkpoint and (8,) "
            "in the model",
        ),
        (truncate_state, "state.json cannot be read"),
        (write_unknown_state, "state.json cannot be read"),
    ],
)
def test_damaged_or_unrelated_checkpoint_is_refused(tmp_path, damage, message):
    checkpoints = Checkpoints(tmp_path, 1)
    damage(save_checkpoint(checkpoints, 3))
    with pytest.raises(UserError) as caught:
        checkpoints.load(3, single_process(), *training_state())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_error_of_damaged_checkpoint_offers_the_previous_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    save_checkpoint(checkpoints, 3)
    damaged = save_checkpoint(checkpoints, 5)
    flip_exponent_bit(damaged)
    with pytest.raises(UserError, match=f"remove the folder {damaged} to resume from .* of step 3"):
        checkpoints.load(5, single_process(), *training_state())
    flip_exponent_bit(checkpoints.path(3))
    with pytest.raises(UserError, match="there is no earlier checkpoint, so start the run again with another --out"):
        checkpoints.load(3, single_process(), *training_state())


def test_checkpoint_without_checksums_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    remove_checksums(save_checkpoint(checkpoints, 3))
    model, *others = training_state(value=9.0)
    assert checkpoints.load(3, single_process(), model, *others).step == 3
    assert model.policy["action_out"].bias.unique().tolist() == [3.0]

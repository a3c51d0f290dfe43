"""Training of ROCKET-2: learning, memory across chunks, resuming, several ranks, export and user errors."""

import re
import shutil

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModel

from rocket_hf.evaluation.trained_policy import find_trained_policy, load_trained_rocket2
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_interface import Goal
from rocket_hf.training.recipe_files import read_rocket2_recipe
from rocket_hf.training.rocket2.batches import rocket2_batch
from rocket_hf.training.rocket2.task import create_rocket2_task

from ..conftest import (
    checkpoint_tensors,
    exported_weights,
    journal_records,
    largest_difference,
    reset_accelerate_state,
    run_ranks,
    run_training,
    set_options,
    step_records,
)

pytestmark = pytest.mark.needs_lerobot

TINY = {
    "rocket2__config__rgb_frozen": False, "rocket2__config__heads": 2, "rocket2__config__rgb_heads": 2,
    "rocket2__config__width": 16, "rocket2__config__rgb_width": 16, "rocket2__config__rgb_mlp_width": 16,
    "rocket2__config__mask_width": 8, "rocket2__config__patch_size": 20, "rocket2__config__spatial_layers": 1,
    "rocket2__config__view_tokens": 2, "rocket2__chunk_steps": 6, "rocket2__chunks": 2, "rocket2__goals": 2,
    "rocket2__warmup_steps": 2,
    "schedule__kind": "constant", "schedule__warmup": 0, "run__steps": 4, "run__validate_every": 2,
    "run__save_every": 2, "run__keep": 9, "run__log_every": 1, "run__validation_samples": 5, "data__validation": 0.34,
}  # fmt: skip


@pytest.fixture(scope="module")
def train(rooms):
    """Return a function that runs a tiny training, which must succeed."""

    def run(out, *more, recipe="rocket2", **changes):
        arguments = ["--recipe", recipe, "--dataset", rooms, "--out", out, *more, *set_options(**(TINY | changes))]
        outcome = run_training(*arguments)
        assert outcome.code == 0, outcome.stderr
        return outcome

    return run


@pytest.fixture(scope="module")
def four_steps(train, tmp_path_factory):
    """Folder and outcome of a run of four steps, the first two of them with view samples only."""
    out = tmp_path_factory.mktemp("runs") / "four_steps"
    outcome = train(out, run__ema=0.9, rocket2__config__spatial_dropout=0.1)
    return out, outcome


def test_auxiliary_losses_fall_in_the_warmup_and_action_losses_after_it(train, tmp_path):
    train(tmp_path, run__steps=40, rocket2__warmup_steps=20, run__validate_every=21, optimizer__lr=5e-3)
    lines = step_records(tmp_path)
    for name in ("auxiliary/point", "auxiliary/box"):
        values = [line[name] for line in lines[:20]]
        assert sum(values[-5:]) < 0.8 * sum(values[:5]), name
    assert not any(name.startswith("action/") for line in lines[:20] for name in line)
    first, last = [line["validation/error"] for line in journal_records(tmp_path) if "validation/error" in line]
    assert last < 0.9 * first  # in a held-out room


def test_journal_contains_losses_and_validation_metrics(four_steps):
    out, outcome = four_steps
    lines = step_records(out)
    assert all(line["skipped"] == 0 and line["chunks"] in (1, 2) for line in lines)
    weights = {"action": 0.125, "visibility": 1.0, "point": 4.0, "box": 2.0}
    for line in lines[2:]:
        named = {name: value for name, value in line.items() if name.startswith(("action/", "auxiliary/"))}
        assert len(named) == 6
        total = sum(weights["action" if "action/" in n else n.partition("/")[2]] * value for n, value in named.items())
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    early, late = [line for line in journal_records(out) if "validation/turn" in line]
    assert "validation/error" not in early
    metrics = {
        "walk", "walk_accuracy", "visibility_accuracy", "visibility_majority", "point_x_error", "point_x_constant",
    }  # fmt: skip
    assert {f"validation/{name}" for name in metrics} <= late.keys()
    assert late["validation/error"] == pytest.approx(sum(late[f"validation/{n}"] for n in ("walk", "strafe", "turn")))
    assert "nats for demonstrated actions" in outcome.stdout and "auxiliary/box" in outcome.stdout
    assert 0 < late["validation/visibility_majority"] <= 1


def test_resumed_run_equals_an_uninterrupted_run_bit_for_bit(four_steps, train, tmp_path):
    whole, _ = four_steps
    changes = {"run__ema": 0.9, "rocket2__config__spatial_dropout": 0.1}
    for last in (1, 3, 4):
        train(tmp_path / "run", *(["--resume"] if last > 1 else []), run__steps=last, **changes)
        if last < 4:
            shutil.rmtree(tmp_path / "run" / "policy")
    for name in ("model", "optimizer", "average", "random"):
        assert (
            largest_difference(checkpoint_tensors(whole, 4, name), checkpoint_tensors(tmp_path / "run", 4, name)) == 0
        ), name
    assert largest_difference(exported_weights(whole), exported_weights(tmp_path / "run")) == 0
    clock = ("seconds/", "samples_per_second")
    one, other = ([{k: v for k, v in line.items() if not k.startswith(clock)} for line in step_records(out)]
                  for out in (whole, tmp_path / "run"))  # fmt: skip
    assert one == other


def test_two_ranks_in_two_passes_train_the_same_policy_as_one_rank(train, rooms, tmp_path):
    train(tmp_path / "one")
    arguments = ["--recipe", "rocket2", "--dataset", rooms, *set_options(**TINY, run__device_batch_size=1)]
    assert run_ranks(2, tmp_path / "two", *arguments) == [0, 0], (tmp_path / "ranks.txt").read_text()
    for step in (2, 4):
        assert (
            largest_difference(checkpoint_tensors(tmp_path / "one", step), checkpoint_tensors(tmp_path / "two", step))
            < 1e-5
        )
    for one, two in zip(step_records(tmp_path / "one"), step_records(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    errors = [
        [line for line in journal_records(tmp_path / run) if "validation/error" in line][-1] for run in ("one", "two")
    ]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_chunks_with_carried_memory_equal_the_whole_segment(rooms):
    changes = [f"{key.replace('__', '.')}={value}" for key, value in TINY.items()]
    changes += [f"data.datasets.0.id={rooms}", "rocket2.chunks=3", "rocket2.views_share=0"]
    recipe = read_rocket2_recipe("rocket2", changes)
    reset_accelerate_state()
    task = create_rocket2_task(recipe, Accelerator(cpu=True))
    reset_accelerate_state()
    chunks = next(batches for batches in task.batches(2) if len(batches) == 3)
    policy, parts, memory = task.policy.train(), [], None
    batches = [rocket2_batch(chunk, policy.device, policy.config.auxiliary_heads) for chunk in chunks]
    for batch in batches:
        output = policy(memory=memory, **batch)
        parts.append(output)
        memory = output.memory
    whole = {key: value if key.startswith("goal_") and key != "goal_index" else torch.cat([b[key] for b in batches], 1)
             for key, value in batches[0].items()}  # fmt: skip
    once = policy(**whole)
    for name, scores in once.logits.items():
        torch.testing.assert_close(torch.cat([part.logits[name] for part in parts], 1), scores, atol=1e-5, rtol=1e-5)
        carried = sum(part.losses[f"action/{name}"] for part in parts)
        torch.testing.assert_close(carried, once.losses[f"action/{name}"], atol=1e-4, rtol=1e-5)
    weight = policy.action_heads.factors["act_turn"].weight
    (by_chunks,) = torch.autograd.grad(sum(part.losses["action/turn"] for part in parts), weight)
    (at_once,) = torch.autograd.grad(once.losses["action/turn"], weight)
    torch.testing.assert_close(by_chunks, at_once, atol=1e-4, rtol=1e-4)


def play_on_noise(policy, steps: int = 3) -> list[torch.Tensor]:
    """Return the actions, auxiliary outputs and memories of a policy that reads random images."""
    generator = torch.Generator().manual_seed(0)
    size, state, outputs = policy.config.image_size, policy.initial_state(2), []
    goal = Goal(torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8),
                torch.randint(0, 2, (2, *size), generator=generator), torch.tensor([6, 6]))  # fmt: skip
    for step in range(steps):
        images = torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8)
        action, state = policy.step(images, goal if not step else None, state, generator=generator)
        outputs += [action, *state.seen.values(), state.memory.values]
    return outputs


def test_exported_policy_equals_the_trained_policy(four_steps):
    out, _ = four_steps
    loaded = AutoModel.from_pretrained(out / "policy", trust_remote_code=True)
    assert list(loaded.config.auxiliary_heads) == ["visibility", "point"]
    trained = load_trained_rocket2(find_trained_policy(out / "checkpoints" / "step-00000004"))
    reopened = Rocket2ForActionPrediction.from_pretrained(out / "policy")
    for other in (trained, reopened):
        for one, two in zip(play_on_noise(loaded), play_on_noise(other), strict=True):
            assert torch.equal(one, two)
    assert largest_difference(dict(loaded.state_dict()), exported_weights(out)) == 0


def test_recipes_without_auxiliary_losses_create_no_heads_and_export_the_same_files(four_steps, train, tmp_path):
    train(tmp_path, recipe="rocket2-cloning", rocket2__warmup_steps=0, run__steps=2)
    train(tmp_path / "visibility", recipe="rocket2-visibility", rocket2__warmup_steps=1, run__steps=2)
    files = [sorted(path.name for path in (out / "policy").iterdir()) for out in (four_steps[0], tmp_path)]
    assert files[0] == files[1]
    assert not [name for name in checkpoint_tensors(tmp_path, 2) if name.startswith("auxiliary")]
    heads = {
        name.split(".")[1] for name in checkpoint_tensors(tmp_path / "visibility", 2) if name.startswith("auxiliary")
    }
    assert heads == {"visibility"}
    assert not [
        name for line in journal_records(tmp_path) for name in line if name.startswith(("auxiliary/", "validation/vis"))
    ]


def test_exported_policy_trains_further_with_new_auxiliary_heads(four_steps, train, tmp_path):
    train(tmp_path, "--policy", four_steps[0] / "policy", run__steps=1, rocket2__warmup_steps=0, optimizer__lr=1e-9)
    before, after = exported_weights(four_steps[0]), exported_weights(tmp_path)
    assert largest_difference(before, after) < 1e-6
    assert {name.split(".")[1] for name in checkpoint_tensors(tmp_path, 1) if name.startswith("auxiliary")} == {
        "visibility", "point", "box",
    }  # fmt: skip


def test_dry_run_describes_data_weights_and_steps(train, tmp_path, four_steps):
    text = train(tmp_path / "never", "--dry-run").stdout
    assert not (tmp_path / "never").exists()
    assert "in 3 rooms: 3 episodes of views, 12 demonstrations" in text
    assert "2 rooms for training, 1 for validation" in text
    counted = sum(int(count.replace(",", "")) for count in re.findall(r"([\d,]+) of [\d,]+ weights", text))
    assert counted == sum(weight.numel() for weight in checkpoint_tensors(four_steps[0], 4).values())
    assert "4 of 4 samples: 1 processes x 4 samples x 1 passes, each of up to 2 chunks of 6 steps" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rocket2__chunk_steps": 0}, "rocket2.chunk_steps must be at least 1, got 0"),
        ({"rocket2__same_episode_goals": 2}, "rocket2.same_episode_goals must be between 0 and 1"),
        ({"rocket2__action": 0}, "rocket2.action must be above 0"),
        ({"rocket2__keep": ["point"], "rocket2__point": 0}, "rocket2.keep: no head 'point' is trained"),
        ({"rocket2__point": 0, "rocket2__box": 0, "rocket2__visibility": 0, "rocket2__keep": []},
         "views train only auxiliary heads, but the weight of every head is 0"),
        ({"rocket2__config__with": 3}, "did you mean 'width'?"),
        ({"rocket2__config__width": 15}, "must be a multiple of heads=2"),
        ({"rocket2__config__rgb_frozen": True},
         "rocket2.config.rgb_frozen would freeze the random image encoder of a new policy"),
        ({"rocket2__config__image_size": [40, 40]},
         "the policy reads images of 40x40, but those of the dataset have 60x80"),
        ({"rocket2__config__action_factors": {"walk": 3, "turn": 9}}, "the policy's actions are walk, turn, the"),
        ({"rocket2__config__action_factors": {"walk": 2, "strafe": 3, "turn": 9}},
         "the policy has 2 choices of 'walk', but the dataset has choice"),
        ({"rocket2__config__interactions": 3}, "the policy has 3 interactions, but the dataset has interaction 6"),
        ({"alignment__student_layers": [1]}, "Rocket2Recipe has no key alignment"),
        ({"parts__vision": "full"}, "Rocket2Recipe has no key parts"),
        ({"run__quantize": True}, "has no key run.quantize"),
        ({"data__workers": 2}, "has no key data.workers"),
        ({"data__datasets__0__episodes": [1]}, "has no key data.datasets.0.episodes"),
        ({"policy": "nowhere/at-all"}, "is not a local folder and cannot be downloaded from the Hub"),
    ],
)  # fmt: skip
def test_invalid_recipes_are_refused_in_one_line(rooms, tmp_path, changes, message):
    arguments = ["--recipe", "rocket2", "--dataset", rooms, "--out", tmp_path / "run", *set_options(**(TINY | changes))]
    outcome = run_training(*arguments)
    assert outcome.code == 2 and message in outcome.stderr, outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_other_datasets_and_policies_are_refused(image_dataset, policies, rooms, tmp_path):
    outcome = run_training(
        "--recipe", "rocket2", "--dataset", image_dataset, "--out", tmp_path / "run", *set_options(**TINY)
    )  # fmt: skip
    assert outcome.code == 2 and "has no column 'observation.images.view'" in outcome.stderr
    assert "`rocket-hf simulate vizdoom`" in outcome.stderr
    arguments = ["--recipe", "rocket2", "--dataset", rooms, "--policy", policies("pi0"), "--out", tmp_path / "run"]
    outcome = run_training(*arguments)
    assert outcome.code == 2 and "describes a model of type 'rocket'" in outcome.stderr


def test_sharding_is_refused(rooms, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    outcome = run_training("--recipe", "rocket2", "--dataset", rooms, "--out", tmp_path / "run", *set_options(**TINY))
    assert outcome.code == 2 and "launch without FSDP2 and DeepSpeed" in outcome.stderr

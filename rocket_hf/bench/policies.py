"""Tiny policies of every family: what taps cost in training, and the latency of a chunk against lerobot's own class.

Both sides of a ratio run in turn in one process, on the same weights and the same batch; the median ratio counts.
"""

from typing import Any

import torch

from rocket_hf.bench.lerobot_tiny import lerobot_batch, lerobot_policy
from rocket_hf.bench.measure import Job, interleaved, median_ratio
from rocket_hf.convert.to_lerobot import lerobot_weights
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import TINY_POLICIES, tiny_config

ROUNDS = 101
THREADS = 1  # more would wait for each other at these sizes


def training_job(model: RocketForActionPrediction, batch: Any, taps: list[int]) -> Job:
    """Forward and backward of the action loss; the tapped tokens are held until the backward pass is over."""

    def job() -> None:
        model.zero_grad()
        output = model.policy(batch, taps, torch.Generator().manual_seed(0))
        sum(output.losses.values()).backward()

    return job


def tap_overhead(model: RocketForActionPrediction) -> float:
    """With every layer tapped but the last, to without. (The last block of pi0 does work only if it is tapped.)"""
    batch, depth = model.config.fake_batch(), model.config.policy_config.depth
    model.train()
    jobs = {"with": training_job(model, batch, list(range(depth))), "without": training_job(model, batch, [])}
    seconds = interleaved(jobs, ROUNDS)
    return median_ratio(seconds["with"], seconds["without"])


def latency_to_lerobot(model: RocketForActionPrediction) -> float:
    theirs = lerobot_policy(model.config)
    theirs.load_state_dict(lerobot_weights(model), strict=True)
    batch = model.eval().config.fake_batch(batch_size=1)
    inputs = {key: value for key, value in batch.items() if key not in ("actions", "action_is_pad")}
    policy = model.config.policy_config
    noise = torch.randn(1, model.config.chunk_size, policy.max_action_dim)
    named = lerobot_batch(batch)
    jobs: dict[str, Job] = {
        "ours": lambda: model.predict_action_chunk(**inputs, noise=noise),
        "theirs": lambda: theirs.predict_action_chunk(named, noise=noise),
    }
    torch.testing.assert_close(jobs["ours"](), jobs["theirs"](), atol=1e-4, rtol=1e-4)
    seconds = interleaved(jobs, ROUNDS)
    return median_ratio(seconds["ours"], seconds["theirs"])


# The families that lerobot has too.
COMPARED = ("pi0", "pi05", "smolvla")


def measure() -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    figures: dict[str, Any] = {}
    for family in TINY_POLICIES:
        torch.manual_seed(0)
        model = RocketForActionPrediction(tiny_config(family, alignment=None))
        figures[family] = {"tap_overhead": round(tap_overhead(model), 3)}
        if family in COMPARED:
            figures[family]["latency_to_lerobot"] = round(latency_to_lerobot(model), 3)
    return figures


def report(figures: dict[str, Any]) -> str:
    rows = [f"tiny policies, {THREADS} CPU thread, median ratios of {ROUNDS} rounds", ""]
    rows.append(f"{'':14}{'with to without taps':>22}{'chunk to lerobot':>20}")
    for family, each in figures.items():
        latency = each.get("latency_to_lerobot")
        rows.append(f"{family:14}{each['tap_overhead']:22.3f}{latency if latency is not None else '-':>20}")
    return "\n".join(rows)

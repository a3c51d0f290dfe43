"""Benchmark of tiny policies of every family: training time with taps, and chunk latency relative to lerobot's policy.

Both sides of a ratio alternate in one process, with the same weights and batch; the median ratio is reported.
"""

from typing import Any

import torch

from rocket_hf.bench.lerobot_tiny import lerobot_batch, lerobot_policy
from rocket_hf.bench.measure import Job, interleaved, median_ratio
from rocket_hf.convert.to_lerobot import lerobot_weights
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import TINY_POLICIES, tiny_config

ROUNDS = 101
THREADS = 1  # synchronizing threads costs more than it saves at these sizes


def create_training_job(model: RocketForActionPrediction, batch: Any, taps: list[int]) -> Job:
    """Create a job for a forward and backward pass of the action loss. Taps stay in memory until the end."""

    def job() -> None:
        model.zero_grad()
        output = model.policy(batch, taps, torch.Generator().manual_seed(0))
        sum(output.losses.values()).backward()

    return job


def tap_overhead(model: RocketForActionPrediction) -> float:
    """Return the training time with all layers but the last tapped, relative to no taps.

    The last layer is left out because pi0 computes its last block for image tokens only if it is tapped.
    """
    batch, depth = model.config.fake_batch(), model.config.policy_config.depth
    model.train()
    all_layers = list(range(depth))
    jobs = {"with": create_training_job(model, batch, all_layers), "without": create_training_job(model, batch, [])}
    seconds = interleaved(jobs, ROUNDS)
    return median_ratio(seconds["with"], seconds["without"])


def latency_to_lerobot(model: RocketForActionPrediction) -> float:
    reference = lerobot_policy(model.config)
    reference.load_state_dict(lerobot_weights(model), strict=True)
    batch = model.eval().config.fake_batch(batch_size=1)
    inputs = {key: value for key, value in batch.items() if key not in ("actions", "action_is_pad")}
    policy = model.config.policy_config
    noise = torch.randn(1, model.config.chunk_size, policy.max_action_dim)
    reference_batch = lerobot_batch(batch)
    jobs: dict[str, Job] = {
        "rocket_hf": lambda: model.predict_action_chunk(**inputs, noise=noise),
        "lerobot": lambda: reference.predict_action_chunk(reference_batch, noise=noise),
    }
    torch.testing.assert_close(jobs["rocket_hf"](), jobs["lerobot"](), atol=1e-4, rtol=1e-4)
    seconds = interleaved(jobs, ROUNDS)
    return median_ratio(seconds["rocket_hf"], seconds["lerobot"])


LEROBOT_FAMILIES = ("pi0", "pi05", "smolvla")  # families that lerobot implements too


def measure() -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    figures: dict[str, Any] = {}
    for family in TINY_POLICIES:
        torch.manual_seed(0)
        model = RocketForActionPrediction(tiny_config(family, alignment=None))
        figures[family] = {"tap_overhead": round(tap_overhead(model), 3)}
        if family in LEROBOT_FAMILIES:
            figures[family]["latency_to_lerobot"] = round(latency_to_lerobot(model), 3)
    return figures


def report(figures: dict[str, Any]) -> str:
    rows = [f"tiny policies, {THREADS} CPU thread, median ratios of {ROUNDS} rounds", ""]
    rows.append(f"{'':14}{'with / without taps':>22}{'latency / lerobot':>20}")
    for family, ratios in figures.items():
        latency = ratios.get("latency_to_lerobot")
        rows.append(f"{family:14}{ratios['tap_overhead']:22.3f}{latency if latency is not None else '-':>20}")
    return "\n".join(rows)

"""Trains a tiny pi0 with an alignment head on one generated batch, publishes it to a folder and loads it back."""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

HELP = "train, publish and load back a tiny policy on this machine, without a download"
SNIPPET = "AutoModel.from_pretrained({folder!r}, trust_remote_code=True)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder to write (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    import torch
    from transformers import AutoModel, AutoProcessor
    from transformers.utils import logging

    from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
    from rocket_hf.modeling.processing_rocket import RocketProcessor
    from rocket_hf.publish import export_policy
    from rocket_hf.tiny import character_tokenizer, tiny_config, tiny_statistics

    if arguments.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {arguments.steps}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = tiny_config()
    model = RocketForActionPrediction(config)
    processor = RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config))
    batch, actions = generated_batch(config, processor)

    start = time.perf_counter()
    first, last = train(model, batch, config.fake_targets(batch_size=len(actions)), arguments.steps)
    seconds = time.perf_counter() - start
    print(f"trained    a tiny pi0 of {model.num_parameters():,} parameters, {arguments.steps} steps in {seconds:.0f} s")
    print(f"           action loss {first['action']:.2f} -> {last['action']:.2f}")
    pairs = len(config.alignment.student_layers)
    print(
        f"           alignment loss {first['alignment']:.2f} -> {last['alignment']:.2f} (mean of {pairs} layer pairs)"
    )

    folder = arguments.out / "policy"
    remove_former(folder)
    export_policy(model, processor, folder)
    size = (folder / "model.safetensors").stat().st_size
    print(f"published  {folder}: {size / 1e6:.2f} MB of weights without the alignment head, and the code to run them")

    loaded = AutoModel.from_pretrained(folder, trust_remote_code=True)
    loaded_processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    observation = {key: value for key, value in batch.items() if key not in ("actions", "action_is_pad")}
    noise = torch.randn(len(actions), config.chunk_size, config.policy_config.max_action_dim)
    trained_chunk = model.eval().predict_action_chunk(**observation, noise=noise)
    loaded_chunk = loaded.predict_action_chunk(**observation, noise=noise)
    error = (loaded_processor.unnormalize_actions(loaded_chunk) - actions).abs().mean()
    print(f"loaded     {SNIPPET.format(folder=str(folder))}")
    print(f"           the same actions as the trained model, bit for bit: {torch.equal(trained_chunk, loaded_chunk)}")
    print(f"           mean distance to the demonstrated actions: {error:.2f} robot units")
    return 0


def remove_former(folder: Path) -> None:
    """Removes what an earlier demo published, and nothing else."""
    config = folder / "config.json"
    if config.is_file() and json.loads(config.read_text()).get("model_type") == "rocket":
        shutil.rmtree(folder)


def generated_batch(config: Any, processor: Any, size: int = 8) -> tuple[dict[str, Any], Any]:
    """Random images, tasks and states, and smooth actions that depend on the state; also those in robot units."""
    import torch

    images = {name: torch.randint(0, 256, (size, 3, 48, 64), dtype=torch.uint8) for name in config.cameras}
    state = torch.randn(size, config.state_dim)
    ramp = torch.linspace(0, 1, config.chunk_size)[None, :, None]
    actions = state[:, None, : config.action_dim] * ramp + torch.arange(config.action_dim) / 10
    tasks = [f"move to place {number}" for number in range(size)]
    return processor(images=images, task=tasks, state=state, actions=actions), actions


def train(model: Any, batch: Any, targets: Any, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """AdamW on one batch; the mean losses by kind over the first and the last tenth of the steps."""
    import torch
    from tqdm import trange

    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    history = []
    for _ in trange(steps, desc="training", leave=False, disable=None):
        losses = model(**batch, targets=targets)
        aligned = torch.stack([loss for name, loss in losses.items() if name.startswith("alignment/")]).mean()
        action = losses["action/flow_matching"]
        optimizer.zero_grad()
        (action + 0.5 * aligned).backward()
        optimizer.step()
        history.append(torch.stack([action.detach(), aligned.detach()]))
    count = max(1, steps // 10)
    means = [torch.stack(part).mean(0).tolist() for part in (history[:count], history[-count:])]
    first, last = (dict(zip(("action", "alignment"), mean, strict=True)) for mean in means)
    return first, last

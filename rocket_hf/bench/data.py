"""Benchmark of the data loader relative to lerobot's, on the same generated datasets with PNG images or video.

lerobot's loader is built as in `lerobot-train`: a LeRobotDataset with `delta_timestamps` in a torch DataLoader. Ours
does more work: it also normalizes, tokenizes prompts and draws noise and times. Both read the same frames in the same
order without worker processes, so that the CPU time of one process includes all work.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from rocket_hf.bench.measure import interleaved, median_ratio
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import character_tokenizer, tiny_config, tiny_statistics
from rocket_hf.tiny_dataset import FPS, write_tiny_dataset
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.loader import BatchDataset, BatchLoader, make_loader
from rocket_hf.training.data.mixture import FrameRanges, MixtureOrder
from rocket_hf.training.recipe import DataConfig, DatasetConfig

CAMERAS = {"front": (128, 128), "wrist": (128, 128)}
EPISODES, FRAMES, GRAIN = 4, 120, 24
CHUNK = 50
BATCH = 8
SAMPLES = 32  # per round
ROUNDS = 5
KINDS = {"png": "PNG in tables", "video": "video (AV1)"}


def create_loader(data: RobotDataset, config: RocketConfig, order: MixtureOrder) -> BatchLoader:
    processor = RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config))
    settings = DataConfig(workers=0)
    return make_loader([data], order, processor, config, settings, seed=0, batch_size=BATCH, end_position=SAMPLES)


def create_lerobot_loader(folder: Path, order: MixtureOrder) -> DataLoader:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    steps = {"action": [step / FPS for step in range(CHUNK)]}
    data = LeRobotDataset(f"local/{folder.name}", root=folder, delta_timestamps=steps, return_uint8=True)
    return DataLoader(Subset(data, [order[position][1] for position in range(SAMPLES)]), batch_size=BATCH)


def require_equal(ours: BatchLoader, theirs: DataLoader, data: RobotDataset) -> None:
    """Assert that all images, states, actions and padding masks are equal."""
    for mine, other in zip(ours, theirs, strict=True):
        for index, key in enumerate(data.camera_keys.values()):
            image = other[key] if other[key].dtype == torch.uint8 else (other[key] * 255).round().to(torch.uint8)
            assert torch.equal(mine["images"][index], image)
        assert isinstance(ours.dataset, BatchDataset)
        processor = ours.dataset.processor
        assert torch.equal(mine["state"], processor.normalize_state(other["observation.state"]))
        assert torch.equal(mine["actions"], processor.normalize_actions(other["action"]))
        assert torch.equal(mine["action_is_pad"], other["action_is_pad"])


def compare_loaders(folder: Path, rounds: int) -> dict[str, float]:
    config = tiny_config(chunk_size=CHUNK)
    data = RobotDataset(DatasetConfig(id=str(folder)), config)
    order = MixtureOrder([FrameRanges([data.frame_range(episode) for episode in data.episodes])])
    ours, theirs = create_loader(data, config, order), create_lerobot_loader(folder, order)
    require_equal(ours, theirs, data)
    seconds = interleaved({"ours": lambda: list(ours), "theirs": lambda: list(theirs)}, rounds)
    return {
        "ratio": median_ratio(seconds["theirs"], seconds["ours"]),
        "ours": SAMPLES / sorted(seconds["ours"])[rounds // 2],
        "theirs": SAMPLES / sorted(seconds["theirs"])[rounds // 2],
    }


@contextmanager
def without_warnings() -> Iterator[None]:
    """Disable warnings: lerobot prints a long one for each dataset if torchcodec cannot be loaded."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place, without_warnings():
        for kind in KINDS:
            folder = write_tiny_dataset(
                Path(place, kind), EPISODES, FRAMES, CAMERAS, video=kind == "video", codec="libsvtav1", noise=GRAIN
            )
            figures[kind] = compare_loaders(folder, rounds)
    ratios = {f"{kind}_chunk50_to_lerobot": round(figures[kind]["ratio"], 2) for kind in KINDS}
    sides = {kind: {side: round(figures[kind][side], 1) for side in ("ours", "theirs")} for kind in KINDS}
    return ratios | {"samples_per_cpu_second": sides}


def report(figures: dict[str, Any]) -> str:
    rows = [
        f"samples per CPU second, two cameras of 128 pixels, chunks of {CHUNK}, batches of {BATCH}, no worker "
        f"processes, equal tensors, medians of {ROUNDS} rounds",
        "",
        f"{'':16}{'rocket_hf':>10}{'lerobot':>10}{'ratio':>8}",
    ]
    for kind, name in KINDS.items():
        sides = figures["samples_per_cpu_second"][kind]
        ratio = figures[f"{kind}_chunk50_to_lerobot"]
        rows.append(f"{name:16}{sides['ours']:10.1f}{sides['theirs']:10.1f}{ratio:8.1f}")
    return "\n".join(rows)

"""A pi0 policy that learns a few simulated tasks on two CPU cores in minutes, and its training settings.

The sizes were determined empirically: with 84 pixels in patches of 14, a gripper remains visible in 36 tokens per
camera, and four blocks of width 128 learn four MetaWorld tasks from 25 demonstrations each (28 of 32 held-out episodes
succeed after 460 steps).
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.files import TEMPORARY_SUFFIX, create_folder, write_json
from rocket_hf.folder_lock import is_unused
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import RocketConfig

from .phases import CommandRunner

DEPTH = 4
CHUNK, EXECUTED_ACTIONS = 10, 5  # actions per chunk, and actions executed before the next prediction
MAX_STEPS = 200  # steps of a rollout; the scripted experts need at most 170
BATCH = 64
TEACHER = "embedded"
SETTINGS = "small_policy.json"  # settings from which `rocket-hf study policy` wrote a policy
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")

# All weights are trained from scratch in few steps, so the learning rate is high and decays to almost zero.
TRAINING: dict[str, Any] = {
    "parts.vision": "full",
    "parts.language": "full",
    "parts.expert": "full",
    "data.in_memory": True,
    "data.workers": 0,
    "optimizer.lr": 1e-3,
    "optimizer.betas": [0.9, 0.95],
    "optimizer.clip_norm": 1.0,
    "schedule.kind": "cosine",
    "schedule.warmup": 30,
    "schedule.final": 0.05,
    "teacher.dtype": "float32",
    "run.validation_samples": 64,
    "run.matmul_precision": "medium",
}


def training_settings(steps: int) -> dict[str, Any]:
    intervals = {"run.save_every": max(1, steps // 8), "run.log_every": min(10, steps)}
    return TRAINING | {"run.steps": steps, "run.batch_size": BATCH} | intervals


def train_policy(
    run_command: CommandRunner, recipe: Path, policy: Path, dataset: Path, out: Path, features: Path | None
) -> None:
    """Train a policy, or resume an interrupted run. `features` is the teacher's feature cache if it is aligned."""
    words = ["--recipe", recipe, "--policy", policy, "--dataset", dataset, "--out", out]
    words += ["--teacher", TEACHER, "--cache", features] if features is not None else []
    words += ["--resume"] if (out / "recipe.yaml").is_file() else []
    run_command("accelerate launch training/train.py", *words)


@dataclass(frozen=True)
class SmallPolicySizes:
    """Sizes of the image encoder: side of the images and of their patches in pixels, and number of blocks."""

    image_size: int = 84
    patch_size: int = 14
    vision_depth: int = 1


def small_pi0(vocabulary: int, sizes: SmallPolicySizes) -> Pi0Config:
    return Pi0Config(
        variant="pi0",
        depth=DEPTH,
        heads=4,
        kv_heads=1,
        head_dim=32,
        width=128,
        mlp_width=256,
        expert_width=64,
        expert_mlp_width=128,
        vocab_size=vocabulary,
        vision_depth=sizes.vision_depth,
        vision_heads=4,
        vision_width=128,
        vision_mlp_width=256,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        max_state_dim=8,
        max_action_dim=8,
        denoising_steps=5,
    )


def write_small_policy(
    folder: Path, dataset: Path, seed: int = 0, sizes: SmallPolicySizes | None = None
) -> RocketConfig:
    """Write an untrained policy for the robot of a LeRobot dataset, with a tokenizer for the words of its tasks."""
    import torch

    from rocket_hf.export.policy_folder import export_policy
    from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
    from rocket_hf.modeling.processing_rocket import RocketProcessor
    from rocket_hf.modeling.robot_adaptation import config_for_robot
    from rocket_hf.training.data.dataset_statistics import compute_dataset_statistics
    from rocket_hf.training.data.lerobot_data import RobotDataset
    from rocket_hf.training.data.robot_from_dataset import read_robot_from_dataset
    from rocket_hf.training.recipe import DatasetConfig

    sizes = sizes or SmallPolicySizes()
    source = DatasetConfig(id=str(dataset))
    template = RocketConfig(policy_config=small_pi0(len(SPECIAL_TOKENS), sizes), alignment=None, chunk_size=CHUNK)
    config = config_for_robot(template, read_robot_from_dataset(source, template))
    data = RobotDataset(source, config)
    tokenizer = word_tokenizer(data.tasks)
    config = RocketConfig.from_dict(config.to_dict(), policy_config=small_pi0(len(tokenizer), sizes))
    torch.manual_seed(seed)
    model = RocketForActionPrediction(config)
    # The longest task is the prompt length, because padding tokens cost as much as others.
    prompt_length = max(len(tokenizer(task)["input_ids"]) for task in data.tasks)
    statistics = compute_dataset_statistics([data])
    processor = RocketProcessor.for_config(config, tokenizer, statistics, max_prompt_length=prompt_length)
    export_policy(model, processor, folder)
    return config


def write_policy_repeatably(folder: Path, dataset: Path, seed: int, sizes: SmallPolicySizes) -> None:
    """Write an untrained policy to a new folder, or to that of an earlier call with the same arguments.

    Each file is complete at all times, so an interrupted call can be repeated.
    """
    settings = {"dataset": str(dataset), "seed": seed, **asdict(sizes)}
    written = folder / SETTINGS
    if not is_unused(folder) and not (written.is_file() and json.loads(written.read_text()) == settings):
        raise UserError(f"{folder} is not empty: choose another folder with --out")
    create_folder(folder)
    write_json(written, settings)
    temporary = folder.with_name(f".{folder.name}{TEMPORARY_SUFFIX}")
    shutil.rmtree(temporary, ignore_errors=True)
    write_small_policy(temporary, dataset, seed, sizes)
    for path in temporary.iterdir():
        path.replace(folder / path.name)
    temporary.rmdir()


def word_tokenizer(texts: list[str]) -> Any:
    """Create a case-insensitive tokenizer with one token for each word of `texts`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in texts for word in text.lower().split()})
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )

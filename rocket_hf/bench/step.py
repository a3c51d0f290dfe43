"""Benchmark of a training step without alignment, and with ROCKET on cached or live features, by number of layer pairs.

The step is that of training/train.py, from the loader's batch to the updated weights, on generated images. It includes
reading the feature cache, which worker processes do in training. `--policy openvla-7b` uses OpenVLA-OFT and VGGT at
their public sizes with random weights in bfloat16, for a GPU.
"""

import gc
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import default_collate

from rocket_hf.bench.measure import Job, interleaved, median_ratio
from rocket_hf.bench.noise_frames import NoiseFrames
from rocket_hf.modeling.configuration_openvla import OpenVLAPolicyConfig
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.strict_config import StrictConfig
from rocket_hf.teachers.cache_writer import CacheWriter, plan_cache
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.registration import WHOLE_IMAGE, Registration
from rocket_hf.teachers.vggt import VggtAggregator, VggtConfig, VggtTeacher, vggt_card
from rocket_hf.tiny import character_tokenizer, tiny_statistics
from rocket_hf.training.recipe import AlignmentSettings, OptimizerConfig, PartsConfig, RunConfig, VLARecipe
from rocket_hf.training.run import TrainState
from rocket_hf.training.setup import create_train_state
from rocket_hf.training.train import training_step
from rocket_hf.training.vla.model_inputs import ModelInputs
from rocket_hf.training.vla.resources import alignment_config
from rocket_hf.training.vla.targets import CachedTargets, LiveTargets, TargetSource
from rocket_hf.training.vla.task import VLATrainingTask

CAMERAS, CAMERA_SIZE, PROMPT_LENGTH, FRAMES = ("front", "wrist"), 224, 32, 8
THREADS = 1  # several threads would wait for each other, and waiting counts as CPU time


@dataclass(frozen=True)
class StepSetting:
    """Policy, teacher and training settings. The teacher is about half as wide as the policy, as VGGT is to OpenVLA."""

    policy: StrictConfig
    teacher: VggtConfig
    chunk_size: int
    student_layers: tuple[int, ...]
    teacher_layers: tuple[int, ...]
    parts: PartsConfig
    batch_size: int
    rounds: int
    dtype: torch.dtype


SMALL = StepSetting(
    policy=Pi0Config(
        depth=16, width=384, heads=6, kv_heads=1, head_dim=64, mlp_width=768, expert_width=160, expert_mlp_width=320,
        vocab_size=256, vision_depth=4, vision_width=256, vision_heads=4, vision_mlp_width=1024,
    ),
    teacher=VggtConfig(embed_dim=96, depth=8, num_heads=2, patch_embed_depth=4, patch_embed_heads=2),
    chunk_size=16,
    student_layers=(2, 3, 4, 5, 6, 7, 8, -1),
    teacher_layers=(1, 2, 3, 4, 5, 6, 7, 8),
    parts=PartsConfig("full", "full", "full", "full"),
    batch_size=2,
    rounds=9,
    dtype=torch.float32,
)  # fmt: skip
OPENVLA = StepSetting(
    policy=OpenVLAPolicyConfig(),
    teacher=VggtConfig(),
    chunk_size=8,
    student_layers=(2, 4, 6, 8, 10, 12, 14, 16, 18, 31),
    teacher_layers=(3, 5, 7, 9, 11, 13, 15, 17, 19, 24),
    parts=PartsConfig(),
    batch_size=8,
    rounds=10,
    dtype=torch.bfloat16,
)
STEP_SETTINGS = {"25m": SMALL, "openvla-7b": OPENVLA}
PAIRS = (1, 2, 4, 8)


class StepBenchmark:
    """Teacher, feature cache and images shared by the modes "plain", "cached" and "live", on one device."""

    def __init__(self, setting: StepSetting, folder: Path):
        precision = "bf16" if setting.dtype == torch.bfloat16 else "no"
        cpu = not torch.accelerator.is_available()
        self.setting, self.accelerator = setting, Accelerator(cpu=cpu, mixed_precision=precision)
        self.device = torch.device(self.accelerator.device.type)
        self.teacher = create_random_teacher(setting, self.device)
        self.registration = Registration(setting.policy.image_grid, [WHOLE_IMAGE] * len(CAMERAS))
        self.frames = NoiseFrames(CAMERAS, CAMERA_SIZE, FRAMES)
        plan = plan_cache(self.frames, self.teacher, setting.teacher_layers)
        writer = CacheWriter(folder, plan, self.frames, self.teacher, batch_size=1)
        writer.prepare(report=lambda line: None)
        writer.write()
        self.folder = folder

    def create_state(self, mode: str, pairs: int) -> TrainState:
        recipe = self.recipe(pairs if mode != "plain" else 0)
        targets = self.targets(mode, recipe)
        torch.manual_seed(0)
        config = RocketConfig(
            policy_config=self.setting.policy,
            alignment=alignment_config(recipe, targets.width) if targets else None,
            cameras=CAMERAS,
            chunk_size=self.setting.chunk_size,
        )
        with torch.device(self.device):
            policy = RocketForActionPrediction(config).to(self.setting.dtype)
        if policy.alignment_head is not None:
            policy.alignment_head.float()
        processor = RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config))
        model_inputs = ModelInputs(config, processor, targets, self.accelerator.device)
        task = VLATrainingTask(recipe, policy, processor, model_inputs, self.accelerator, resources=None)
        task.make_trainable()
        return create_train_state(task, recipe, self.accelerator)

    def recipe(self, pairs: int) -> VLARecipe:
        """Return a recipe with the last `pairs` layer pairs, with ROCKET's nested projector if there are several."""
        alignment = None
        if pairs:
            alignment = AlignmentSettings(
                student_layers=list(self.setting.student_layers[-pairs:]),
                teacher_layers=list(self.setting.teacher_layers[-pairs:]),
                nesting="increasing" if pairs > 1 else "none",
            )
        run = RunConfig(batch_size=self.setting.batch_size)
        return VLARecipe(parts=self.setting.parts, alignment=alignment, optimizer=OptimizerConfig(lr=1e-5), run=run)

    def targets(self, mode: str, recipe: VLARecipe) -> TargetSource | None:
        if recipe.alignment is None:
            return None
        layers = recipe.alignment.teacher_layers
        if mode == "live":
            return LiveTargets(self.teacher, layers, self.registration)
        return CachedTargets(FeatureCache(self.folder, layers=layers), self.registration, self.setting.dtype)

    def create_step_job(self, state: TrainState) -> Job:
        """Create a job for one training step; each call uses other frames."""
        numbers = count()
        assert isinstance(state.task, VLATrainingTask)
        config, source = state.policy.config, state.task.batch_inputs.target_source
        fake = config.fake_batch(self.setting.batch_size, PROMPT_LENGTH)
        numeric = {key: value for key, value in fake.items() if key != "images"}

        def step() -> None:
            chosen = [next(numbers) % FRAMES for _ in range(self.setting.batch_size)]
            raw: dict[str, Any] = {**numeric, "images": self.frames.read_images(chosen)}
            if isinstance(source, CachedTargets):
                raw["features"] = default_collate([source.cache.read(index) for index in chosen])
            training_step(state, [raw], step=0)
            state.timer.pop_intervals()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return step


def create_random_teacher(setting: StepSetting, device: torch.device) -> VggtTeacher:
    torch.manual_seed(0)
    with torch.device(device):
        aggregator = VggtAggregator(setting.teacher).to(setting.dtype)
    return VggtTeacher(aggregator, vggt_card(setting.teacher, "random", "0", "unknown"), "camera")


def measure(policy: str = "25m") -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    setting = STEP_SETTINGS[policy]
    all_pairs = len(setting.student_layers)
    modes = {"plain": ("plain", 0), "cached": ("cached", all_pairs), "live": ("live", all_pairs)}
    modes |= {f"cached {pairs}": ("cached", pairs) for pairs in PAIRS if pairs != all_pairs}
    with tempfile.TemporaryDirectory() as folder:
        benchmark = StepBenchmark(setting, Path(folder) / "cache")
        if benchmark.device.type == "cuda":
            seconds, memory = measure_on_gpu(benchmark, modes)
        else:
            jobs = {name: benchmark.create_step_job(benchmark.create_state(*mode)) for name, mode in modes.items()}
            seconds, memory = interleaved(jobs, setting.rounds), {}
    seconds |= {f"cached {all_pairs}": seconds["cached"]}
    return {
        "policy": policy,
        "device": benchmark.device.type,
        "cached_to_plain": round(median_ratio(seconds["cached"], seconds["plain"]), 3),
        "live_to_plain": round(median_ratio(seconds["live"], seconds["plain"]), 3),
        "by_pairs": {
            str(pairs): round(median_ratio(seconds[f"cached {pairs}"], seconds["plain"]), 3) for pairs in PAIRS
        },
        "seconds": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
        "peak_memory_gib": {name: round(size / 2**30, 2) for name, size in memory.items()},
    }


def measure_on_gpu(
    benchmark: StepBenchmark, modes: dict[str, tuple[str, int]]
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Measure each mode alone on a GPU, after two warm-up steps: the seconds of each step, and the peak memory."""
    seconds, memory = {}, {}
    for name, mode in modes.items():
        job = benchmark.create_step_job(benchmark.create_state(*mode))
        job(), job()
        torch.cuda.reset_peak_memory_stats()
        seconds[name] = [wall_seconds(job) for _ in range(benchmark.setting.rounds)]
        memory[name] = torch.cuda.max_memory_allocated()
        del job
        gc.collect()
        torch.cuda.empty_cache()
    return seconds, memory


def wall_seconds(job: Job) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def report(figures: dict[str, Any]) -> str:
    setting = STEP_SETTINGS[figures["policy"]]
    with torch.device("meta"):
        model = RocketForActionPrediction(
            RocketConfig(policy_config=setting.policy, cameras=CAMERAS, chunk_size=setting.chunk_size)
        )
    unit = "seconds" if figures["device"] == "cuda" else f"CPU seconds, {THREADS} thread"
    rows = [
        f"one training step of {setting.batch_size} samples, {model.num_parameters() / 1e6:.0f} M parameters, "
        f"{len(setting.student_layers)} layer pairs, two cameras of {CAMERA_SIZE} px; {unit}, medians",
        "",
        f"{'':20}{'seconds':>10}{'ratio':>10}{'peak GiB':>10}",
    ]
    ratios = {"plain": 1.0, "cached": figures["cached_to_plain"], "live": figures["live_to_plain"]}
    ratios |= {f"cached {pairs}": ratio for pairs, ratio in figures["by_pairs"].items()}
    names = {"plain": "without alignment", "cached": "ROCKET, cached", "live": "ROCKET, live"}
    for name, ratio in ratios.items():
        label = names.get(name, f"cached, {name.removeprefix('cached ')} pairs")
        memory = figures["peak_memory_gib"].get(name)
        rows.append(
            f"{label:20}{figures['seconds'][name]:10.3f}{ratio:10.3f}{memory if memory is not None else '-':>10}"
        )
    return "\n".join(rows)

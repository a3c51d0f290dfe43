"""What a recipe would do: what trains, the layer pairs, samples, memory and cost.

Nothing is read but configurations and the datasets' numbers; policy and teacher are built without their weights, and
what they need is counted there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction

from ..distributed.deepspeed_zero import zero_stage
from ..distributed.placement import sharded
from ..recipe import VLARecipe
from ..recipe_checks import split_batch
from ..recipe_files import changed
from ..rocket2.dry_run import sections as goal_sections
from .parts import weights_with_gradients
from .resources import TrainingResources, load_training_resources
from .targets import LiveTargets
from .trainable import count_trainable_by_part, make_trainable

META = torch.device("meta")
GRADIENT, MOMENTS, AVERAGE = 4, 8, 4  # bytes per trained weight
GIB = 2**30


@dataclass
class Cost:
    """Of one sample: floating-point operations, and bytes that the forward pass keeps for the backward pass."""

    student: float
    teacher: float
    activations: int


def describe(recipe: VLARecipe, accelerator: Accelerator) -> str:
    if recipe.goals is not None:
        sections = goal_sections(recipe, accelerator.num_processes)
    else:
        sections = aligned_sections(recipe, accelerator)
    whole = {"recipe": recipe_lines(recipe), **sections}
    return "\n".join(row for name, lines in whole.items() for row in titled(name, lines))


def aligned_sections(recipe: VLARecipe, accelerator: Accelerator) -> dict[str, list[str]]:
    sources = load_training_resources(replace(recipe, data=replace(recipe.data, in_memory=False)), META)
    with META:
        policy = RocketForActionPrediction(sources.config).train()
    make_trainable(policy, recipe)
    if recipe.run.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    cost = count_cost(policy, sources)
    return {
        "data": data_lines(sources),
        "pairs": pair_lines(policy),
        "trains": training_lines(policy, recipe),
        "steps": step_lines(recipe, sources, accelerator.num_processes),
        "memory": memory_lines(policy, recipe, cost, accelerator),
        "compute": compute_lines(recipe, cost),
        "notes": [note for note in sources.notes if note],
    }


def titled(name: str, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"{'' if number else name:10}{line}"


def recipe_lines(recipe: VLARecipe) -> list[str]:
    rows = [(key, value) for key, value in changed(recipe) if key not in ("name", "about")]
    return [recipe.name, *(f"  {key}: {value}" for key, value in rows)]


def data_lines(sources: TrainingResources) -> list[str]:
    lines = []
    for data in sources.datasets:
        frames = sum(len(data.frame_range(episode)) for episode in data.episodes)
        cameras = ", ".join(f"{name} {rows}x{columns}" for name, (rows, columns) in data.camera_sizes.items())
        lines.append(f"{data.id}@{data.revision}: {frames:,} frames in {len(data.episodes)} episodes; {cameras}")
    held_out = f"{len(sources.held_out)} frames" if sources.held_out else "nothing"
    return [*lines, f"validated with {held_out} of held-out episodes"]


def pair_lines(policy: RocketForActionPrediction) -> list[str]:
    head, config = policy.alignment_head, policy.config.alignment
    if head is None:
        return ["none"]
    depth = policy.config.policy_config.depth
    return [
        f"layer {student} of {depth} with the teacher's {teacher}, {width} of {config.hidden_width} hidden units"
        for (student, teacher), width in zip(head.pairs, head.widths, strict=True)
    ]


def training_lines(policy: RocketForActionPrediction, recipe: VLARecipe) -> list[str]:
    lines = []
    for part, (training, whole) in count_trainable_by_part(policy).items():
        how = "full" if part == "projector" else getattr(recipe.parts, part)
        lines.append(f"{part:10}{how:8}{training:>15,} of {whole:,} weights")
    with META:
        plain = RocketForActionPrediction(policy.config)
    idle = sorted({name for name, _ in plain.named_parameters()} - weights_with_gradients(policy.config))
    if idle:
        lines.append(f"frozen, as no loss reaches them: {len(idle)} tensors, {', '.join(idle[:3])}, ...")
    return lines


def step_lines(recipe: VLARecipe, sources: TrainingResources, ranks: int) -> list[str]:
    each, count = split_batch(recipe, ranks)
    samples = recipe.run.steps * recipe.run.batch_size
    frames = sum(len(part) for part in sources.order.frames)
    return [
        f"{recipe.run.steps:,} of {recipe.run.batch_size} samples: {ranks} processes x {each} samples x {count} split_batch",
        f"{samples:,} samples, {samples / frames:.1f} times the {frames:,} frames to train on",
    ]


def memory_lines(policy: nn.Module, recipe: VLARecipe, cost: Cost, accelerator: Accelerator) -> list[str]:
    ranks = accelerator.num_processes
    each, _ = split_batch(recipe, ranks)
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in policy.parameters()) - trained
    base = 2 if recipe.run.base_dtype == "bfloat16" else 4
    share = ranks if sharded() or zero_stage() is not None else 1
    of_weights = 1 if zero_stage() == 2 else share
    activations = cost.activations * each / (2 if accelerator.mixed_precision == "bf16" else 1)
    parts = {
        "weights": (frozen * base + trained * 4) / of_weights,
        "gradients": trained * GRADIENT / share,
        "moments": trained * (MOMENTS / share + (AVERAGE / of_weights if recipe.run.ema else 0)),
        "activations": activations,
    }
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    return [f"about {sum(parts.values()) / GIB:.2f} GiB per device, the teacher aside: {listed}"]


def compute_lines(recipe: VLARecipe, cost: Cost) -> list[str]:
    samples = recipe.run.steps * recipe.run.batch_size
    each = cost.student + cost.teacher
    lines = [
        f"{each / 1e12:.3g} TFLOP a sample, {cost.teacher / each:.1%} of them the teacher's; "
        f"{samples * each / 1e15:.3g} PFLOP in all"
    ]
    other = recipe.compared_with
    if other is not None:
        their_samples = other.models * other.batch_size * other.steps
        their_cost = their_samples * (cost.student + (cost.teacher if other.teacher else 0))
        lines.append(
            f"{samples / their_samples:.4f} of the samples and {samples * each / their_cost:.4f} of the operations of "
            f"{other.name}: {other.models} models x {other.batch_size} x {other.steps:,}"
        )
    return lines


def count_cost(policy: RocketForActionPrediction, sources: TrainingResources) -> Cost:
    config = policy.config
    batch: Any = {key: value.to(META) for key, value in config.fake_batch(1, prompt_length(sources)).items()}
    targets = None
    if config.alignment is not None:
        targets = {layer: target.to(META) for layer, target in config.fake_targets(1).items()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage()._cdata for parameter in policy.parameters()}
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = policy(**batch, targets=targets).losses
        torch.stack(list(losses.values())).sum().backward()
    activations = sum(size for place, size in saved.items() if place not in weights)
    return Cost(counter.get_total_flops(), teacher_flops(sources), activations)


def teacher_flops(sources: TrainingResources) -> float:
    """Of live targets; cached ones are computed once for all runs."""
    source = sources.targets
    if not isinstance(source, LiveTargets):
        return 0.0
    data = sources.datasets[0]
    pictures = [torch.empty(1, 3, *size, device=META) for size in data.camera_sizes.values()]
    with FlopCounterMode(display=False) as counter:
        source.scene_features(pictures, None)
    return counter.get_total_flops()


def prompt_length(sources: TrainingResources) -> int:
    return sources.processor.max_prompt_length

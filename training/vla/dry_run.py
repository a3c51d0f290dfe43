"""Description of a VLA run before it starts: layer pairs, trained weights, samples, memory and compute.

Only configurations and the datasets' tables are read. Policy and teacher are built without weights, on torch's meta
device, where their operations and activations are counted.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction

from ..distributed.placement import gradients_are_sharded, weights_are_sharded
from ..recipe import VLARecipe
from ..recipe_checks import split_batch
from .layer_pairs import resolve_layer_pairs
from .parts import weights_with_gradients
from .resources import TrainingResources, load_training_resources
from .robot import complete_robot
from .targets import LiveTargets
from .trainable import count_trainable_by_part, make_trainable

META = torch.device("meta")
GRADIENT_BYTES, MOMENT_BYTES, AVERAGE_BYTES = 4, 8, 4  # per trained weight
GIB = 2**30


@dataclass
class SampleCost:
    """Cost of one sample: FLOPs of policy and teacher, and bytes that the forward pass saves for the backward pass."""

    student: float
    teacher: float
    activations: int


def vla_sections(recipe: VLARecipe, accelerator: Accelerator) -> dict[str, list[str]]:
    recipe, comparison = complete_robot(recipe, accelerator)
    recipe = resolve_layer_pairs(recipe, accelerator)
    resources = load_training_resources(replace(recipe, data=replace(recipe.data, in_memory=False)), META)
    with META:
        policy = RocketForActionPrediction(resources.config).train()
    make_trainable(policy, recipe)
    if recipe.run.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    cost = count_sample_cost(policy, resources)
    return {
        "robot": comparison,
        "data": data_lines(resources),
        "pairs": pair_lines(policy),
        "trains": training_lines(policy, recipe),
        "steps": step_lines(recipe, resources, accelerator.num_processes),
        "memory": memory_lines(policy, recipe, cost, accelerator),
        "compute": compute_lines(recipe, cost),
        "notes": [note for note in resources.notes if note],
    }


def data_lines(resources: TrainingResources) -> list[str]:
    lines = []
    for data in resources.datasets:
        frames = sum(len(data.frame_range(episode)) for episode in data.episodes)
        cameras = ", ".join(f"{name} {rows}x{columns}" for name, (rows, columns) in data.camera_sizes.items())
        lines.append(f"{data.id}@{data.revision}: {frames:,} frames in {len(data.episodes)} episodes; {cameras}")
    held_out = f"{len(resources.held_out)} frames of held-out episodes" if resources.held_out else "none"
    return [*lines, f"validation: {held_out}"]


def pair_lines(policy: RocketForActionPrediction) -> list[str]:
    head, config = policy.alignment_head, policy.config.alignment
    if head is None:
        return ["none"]
    depth = policy.config.policy_config.depth
    return [
        f"layer {student} of {depth} with teacher layer {teacher}, {width} of {config.hidden_width} hidden units"
        for (student, teacher), width in zip(head.pairs, head.widths, strict=True)
    ]


def training_lines(policy: RocketForActionPrediction, recipe: VLARecipe) -> list[str]:
    lines = []
    for part, (trainable, total) in count_trainable_by_part(policy).items():
        mode = "full" if part == "projector" else getattr(recipe.parts, part)
        lines.append(f"{part:10}{mode:8}{trainable:>15,} of {total:,} weights")
    with META:
        without_lora = RocketForActionPrediction(policy.config)
    unused = sorted({name for name, _ in without_lora.named_parameters()} - weights_with_gradients(policy.config))
    if unused:
        lines.append(f"frozen, because no loss reaches them: {len(unused)} tensors, {', '.join(unused[:3])}, ...")
    return lines


def step_lines(recipe: VLARecipe, resources: TrainingResources, ranks: int) -> list[str]:
    per_pass, passes = split_batch(recipe, ranks)
    samples = recipe.run.steps * recipe.run.batch_size
    frames = sum(len(part) for part in resources.order.frames)
    return [
        f"{recipe.run.steps:,} of {recipe.run.batch_size} samples: "
        f"{ranks} processes x {per_pass} samples x {passes} passes",
        f"{samples:,} samples, {samples / frames:.1f} times the {frames:,} training frames",
    ]


def memory_lines(policy: nn.Module, recipe: VLARecipe, cost: SampleCost, accelerator: Accelerator) -> list[str]:
    ranks = accelerator.num_processes
    per_pass, _ = split_batch(recipe, ranks)
    trainable = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in policy.parameters()) - trainable
    base_bytes = 2 if recipe.run.base_dtype == "bfloat16" else 4
    gradient_shards = ranks if gradients_are_sharded() else 1
    weight_shards = ranks if weights_are_sharded() else 1
    average_bytes = AVERAGE_BYTES / weight_shards if recipe.run.ema else 0
    sizes = {
        "weights": (frozen * base_bytes + trainable * 4) / weight_shards,
        "gradients": trainable * GRADIENT_BYTES / gradient_shards,
        "moments": trainable * (MOMENT_BYTES / gradient_shards + average_bytes),
        "activations": cost.activations * per_pass / (2 if accelerator.mixed_precision == "bf16" else 1),
    }
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.items())
    return [f"about {sum(sizes.values()) / GIB:.2f} GiB per device without the teacher: {listed}"]


def compute_lines(recipe: VLARecipe, cost: SampleCost) -> list[str]:
    samples = recipe.run.steps * recipe.run.batch_size
    per_sample = cost.student + cost.teacher
    lines = [
        f"{per_sample / 1e12:.3g} TFLOP per sample, of which the teacher {cost.teacher / per_sample:.1%}; "
        f"{samples * per_sample / 1e15:.3g} PFLOP in total"
    ]
    other = recipe.compared_with
    if other is not None:
        other_samples = other.models * other.batch_size * other.steps
        other_cost = other_samples * (cost.student + (cost.teacher if other.teacher else 0))
        lines.append(
            f"{samples / other_samples:.4f} of the samples and {samples * per_sample / other_cost:.4f} of the FLOPs of "
            f"{other.name}: {other.models} models x {other.batch_size} x {other.steps:,}"
        )
    return lines


def count_sample_cost(policy: RocketForActionPrediction, resources: TrainingResources) -> SampleCost:
    config = policy.config
    prompt_length = resources.processor.max_prompt_length
    batch: Any = {key: value.to(META) for key, value in config.fake_batch(1, prompt_length).items()}
    targets = None
    if config.alignment is not None:
        targets = {layer: target.to(META) for layer, target in config.fake_targets(1).items()}
    saved_bytes: dict[int, int] = {}  # by storage

    def record(tensor: Tensor) -> Tensor:
        saved_bytes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage()._cdata for parameter in policy.parameters()}
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            losses = policy(**batch, targets=targets).losses
        torch.stack(list(losses.values())).sum().backward()
    activations = sum(size for storage, size in saved_bytes.items() if storage not in weights)
    return SampleCost(counter.get_total_flops(), teacher_flops(resources), activations)


def teacher_flops(resources: TrainingResources) -> float:
    """Return the teacher's FLOPs per sample; 0 with a feature cache, which is computed once for all runs."""
    source = resources.targets
    if not isinstance(source, LiveTargets):
        return 0.0
    images = [torch.empty(1, 3, *size, device=META) for size in resources.datasets[0].camera_sizes.values()]
    with FlopCounterMode(display=False) as counter:
        source.scene_features(images, None)
    return counter.get_total_flops()

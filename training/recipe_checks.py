"""Checks of a recipe's values and their combinations, before anything is loaded."""

from accelerate.tracking import get_available_trackers

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket2 import AUXILIARY_HEADS
from rocket_hf.modeling.strict_config import suggest_name

from .recipe import BaseRecipe, Rocket2Recipe, Rocket2Settings, ScheduleConfig, VLARecipe

TRACKERS = ("trackio", "wandb", "tensorboard")
AUGMENTATION_RANGES = {
    "crop_area": (0.01, 1), "rotation": (0, 180), "brightness": (0, 1), "contrast": (0, 1), "saturation": (0, 1),
    "hue": (0, 0.5),
}  # fmt: skip


def check_recipe(recipe: BaseRecipe) -> None:
    """Raise a UserError if the recipe cannot be trained."""
    if isinstance(recipe, VLARecipe) and not recipe.policy:
        raise UserError("no policy to train: pass --policy with a folder or a Hub id, or set policy in the recipe")
    if not recipe.data.datasets or not all(dataset.id for dataset in recipe.data.datasets):
        raise UserError("no dataset to train on: pass --dataset with a folder or a Hub id")
    if isinstance(recipe, VLARecipe):
        check_vla(recipe)
    if isinstance(recipe, Rocket2Recipe):
        check_rocket2(recipe.rocket2)
    check_numbers(recipe)
    check_schedule(recipe.schedule)
    check_trackers(recipe.run.trackers)


def check_trackers(trackers: list[str]) -> None:
    installed = {str(tracker) for tracker in get_available_trackers()}
    for tracker in trackers:
        if tracker not in TRACKERS:
            raise UserError(f"run.trackers: there is no tracker {tracker!r}: {suggest_name(tracker, TRACKERS)}")
        if tracker not in installed:
            raise UserError(f"run.trackers: {tracker} is not installed: `pip install {tracker}`, or remove it")


def check_vla(recipe: VLARecipe) -> None:
    data, caches = recipe.data, recipe.teacher.caches
    if data.streaming and data.in_memory:
        raise UserError("data.streaming fetches images one by one and data.in_memory all at once: choose one of them")
    if recipe.alignment is not None and caches and len(caches) != len(data.datasets):
        raise UserError(f"teacher.caches needs one folder per dataset: {len(caches)} for {len(data.datasets)} datasets")
    check_alignment(recipe)
    require_at_least("lora.rank", recipe.lora.rank, 1)
    require_at_least("lora.alpha", recipe.lora.alpha, 1)
    require_between("lora.dropout", recipe.lora.dropout, 0, 0.999)
    require_at_least("data.workers", data.workers, 0)
    check_rate(recipe)
    require_at_least("data.prefetch", data.prefetch, 1)
    for name, (low, high) in AUGMENTATION_RANGES.items():
        require_between(f"data.augmentation.{name}", getattr(data.augmentation, name), low, high)
    require_above_zero("optimizer.projector_lr", recipe.optimizer.projector_lr)
    require_at_least("analysis.gradient_agreement_every", recipe.analysis.gradient_agreement_every, 0)
    if recipe.analysis.gradient_agreement_every and recipe.alignment is None:
        raise UserError(
            "analysis.gradient_agreement_every compares layer pairs, but this recipe aligns none: set it to 0"
        )


def check_rate(recipe: VLARecipe) -> None:
    resample, fps = recipe.data.resample, recipe.robot.fps
    require_above_zero("data.resample", resample)
    if resample is not None and recipe.data.allow_rates:
        raise UserError("data.resample gives all datasets one control rate and data.allow_rates keeps several: choose "
                        "one of them")  # fmt: skip
    if resample is not None and fps is not None and resample != fps:
        raise UserError(
            f"data.resample={resample:g} and robot.fps={fps:g} are both the policy's control rate: remove robot.fps"
        )


def check_alignment(recipe: VLARecipe) -> None:
    alignment = recipe.alignment
    if alignment is None:
        return
    if (alignment.schedule == "constant") != (alignment.until is None):
        raise UserError(
            f"alignment.until={alignment.until} does not fit alignment.schedule={alignment.schedule}: set it to a step "
            "for the schedules linear and stop, and leave it out for constant"
        )
    require_at_least("alignment.until", alignment.until, 1)
    require_at_least("alignment.pairs", alignment.pairs, 1)
    require_between("alignment.normalize_targets", alignment.normalize_targets, 0, 1)
    if set(alignment.student_layers) == {0} and recipe.parts.vision == "frozen":
        raise UserError(
            "alignment.student_layers=[0] aligns the vision encoder alone, but parts.vision=frozen: set it to lora or "
            "full, or align later layers"
        )
    if recipe.teacher.targets == "shuffled" and not recipe.teacher.caches:
        raise UserError(
            "teacher.targets=shuffled reads the features of other frames from feature caches: build them with "
            "`rocket-hf cache build` and pass --cache"
        )
    if alignment.weight <= 0:
        raise UserError(
            f"alignment.weight must be above 0, got {alignment.weight}: to train without it set alignment=null"
        )
    resolution = recipe.teacher.resolution
    if isinstance(resolution, str) and resolution not in ("camera", "teacher"):
        raise UserError(f"teacher.resolution must be camera, teacher or a number of pixels, got {resolution!r}")


def check_rocket2(rocket2: Rocket2Settings) -> None:
    for name in ("chunk_steps", "chunks", "goals"):
        require_at_least(f"rocket2.{name}", getattr(rocket2, name), 1)
    for name in ("warmup_steps", *AUXILIARY_HEADS):
        require_at_least(f"rocket2.{name}", getattr(rocket2, name), 0)
    require_above_zero("rocket2.action", rocket2.action)
    require_between("rocket2.views_share", rocket2.views_share, 0, 1)
    require_between("rocket2.same_episode_goals", rocket2.same_episode_goals, 0, 1)
    heads = auxiliary_heads(rocket2)
    if missing := [name for name in rocket2.keep if name not in heads]:
        raise UserError(
            f"rocket2.keep: no head {missing[0]!r} is trained: choose from {', '.join(heads) or 'none'}, or give the "
            "head a weight above 0"
        )
    if not heads and (rocket2.warmup_steps or rocket2.views_share):
        raise UserError("views train only auxiliary heads, but the weight of every head is 0: "
                         "set rocket2.warmup_steps=0 and rocket2.views_share=0")  # fmt: skip
    if "auxiliary_heads" in rocket2.config:
        raise UserError("rocket2.config.auxiliary_heads follows from the loss weights: set rocket2.visibility, "
                         "rocket2.point and rocket2.box to 0 or above instead")  # fmt: skip


def auxiliary_heads(rocket2: Rocket2Settings) -> list[str]:
    """Return the names of the auxiliary heads with a loss weight above 0."""
    return [name for name in AUXILIARY_HEADS if getattr(rocket2, name) > 0]


def check_numbers(recipe: BaseRecipe) -> None:
    run, optimizer = recipe.run, recipe.optimizer
    for name in ("steps", "batch_size", "log_every", "save_every", "keep", "validate_every", "validation_samples"):
        require_at_least(f"run.{name}", getattr(run, name), 1)
    require_at_least("run.device_batch_size", run.device_batch_size, 1)
    require_at_least("run.max_skipped_steps", run.max_skipped_steps, 1)
    require_between("run.ema", run.ema, 0, 0.9999999)
    require_between("data.validation", recipe.data.validation, 0, 0.999)
    for name in ("lr", "heads_lr", "eps", "clip_norm"):
        require_above_zero(f"optimizer.{name}", getattr(optimizer, name))
    require_at_least("optimizer.weight_decay", optimizer.weight_decay, 0)
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise UserError(f"optimizer.betas must be two numbers from 0 to below 1, got {optimizer.betas}")


def check_schedule(schedule: ScheduleConfig) -> None:
    require_at_least("schedule.warmup", schedule.warmup, 0)
    require_between("schedule.final", schedule.final, 0, 1)
    require_above_zero("schedule.factor", schedule.factor)
    if schedule.kind == "step" and not schedule.at:
        raise UserError("schedule.kind=step needs schedule.at, the steps at which the learning rates decrease")
    if schedule.until is not None and schedule.kind != "cosine":
        raise UserError(f"schedule.until needs schedule.kind=cosine, got schedule.kind={schedule.kind}")
    if schedule.until is not None and schedule.until <= schedule.warmup:
        raise UserError(
            f"schedule.until={schedule.until} must be greater than schedule.warmup={schedule.warmup}, "
            "the step at which the decay begins"
        )
    if schedule.at and (schedule.kind != "step" or schedule.at != sorted(schedule.at)):
        raise UserError(
            f"schedule.at must be ascending steps and needs schedule.kind=step, got {schedule.at} and {schedule.kind}"
        )


def require_above_zero(name: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise UserError(f"{name} must be above 0, got {value}")


def require_at_least(name: str, value: float | None, minimum: float) -> None:
    if value is not None and value < minimum:
        raise UserError(f"{name} must be at least {minimum}, got {value}")


def require_between(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise UserError(f"{name} must be between {low} and {high:g}, got {value}")


def split_batch(recipe: BaseRecipe, ranks: int) -> tuple[int, int]:
    """Return the samples per pass on one device and the passes per step that make up `run.batch_size`."""
    total, per_pass = recipe.run.batch_size, recipe.run.device_batch_size
    if total % ranks:
        raise UserError(
            f"run.batch_size={total} cannot be divided among {ranks} processes: choose a multiple of {ranks}"
        )
    per_pass = per_pass or total // ranks
    if total % (ranks * per_pass):
        raise UserError(
            f"run.batch_size={total} is not a multiple of {ranks} processes x run.device_batch_size={per_pass}: "
            "change one of them"
        )
    return per_pass, total // (ranks * per_pass)

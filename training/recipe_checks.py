"""What a recipe says that cannot be, found before anything is loaded."""

from accelerate.tracking import get_available_trackers

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket2 import AUXILIARY_HEADS
from rocket_hf.modeling.strict_config import nearest

from .recipe import DatasetConfig, GoalRecipe, Recipe

TRACKERS = ("trackio", "wandb", "tensorboard")
AUGMENTATION = {
    "crop_area": (0.01, 1), "rotation": (0, 180), "brightness": (0, 1), "contrast": (0, 1), "saturation": (0, 1),
    "hue": (0, 0.5),
}  # fmt: skip


def check_recipe(recipe: Recipe) -> None:
    check_sources(recipe)
    check_alignment(recipe)
    check_goals(recipe)
    check_numbers(recipe)
    check_schedule(recipe)
    check_analysis(recipe)
    check_trackers(recipe.run.trackers)


def check_trackers(trackers: list[str]) -> None:
    there = {str(tracker) for tracker in get_available_trackers()}
    for tracker in trackers:
        if tracker not in TRACKERS:
            raise UserError(f"run.trackers: there is no tracker {tracker!r}: {nearest(tracker, TRACKERS)}")
        if tracker not in there:
            raise UserError(f"run.trackers: {tracker} is not installed: `pip install {tracker}`, or leave it out")


def check_sources(recipe: Recipe) -> None:
    if not recipe.policy and recipe.goals is None:
        raise UserError("which policy is to be trained: pass --policy with a folder or a Hub id, or set policy")
    if not recipe.data.datasets or not all(dataset.id for dataset in recipe.data.datasets):
        raise UserError("which data it is to be trained on: pass --dataset with a folder or a Hub id")
    if recipe.data.streaming and recipe.data.in_memory:
        raise UserError("data.streaming fetches pictures one by one and data.in_memory all at once: choose one")
    caches, datasets = recipe.teacher.caches, recipe.data.datasets
    if recipe.alignment is not None and caches and len(caches) != len(datasets):
        raise UserError(f"teacher.caches needs one folder per dataset: {len(caches)} for {len(datasets)} datasets")


def check_alignment(recipe: Recipe) -> None:
    alignment = recipe.alignment
    if alignment is None:
        return
    if (alignment.schedule == "constant") != (alignment.until is None):
        raise UserError("alignment.until, a step, is given exactly when alignment.schedule is linear or stop")
    at_least("alignment.until", alignment.until, 1)
    if alignment.weight <= 0:
        raise UserError(f"alignment.weight must be above 0, got {alignment.weight}: to leave it out set alignment=null")
    resolution = recipe.teacher.resolution
    if isinstance(resolution, str) and resolution not in ("camera", "teacher"):
        raise UserError(f"teacher.resolution is camera, teacher or a number of pixels, not {resolution!r}")


def check_goals(recipe: Recipe) -> None:
    """A recipe of ROCKET-2 says nothing that has no meaning for it."""
    goals, data = recipe.goals, recipe.data
    if goals is None:
        return
    for name in ("chunk_steps", "chunks", "goals"):
        at_least(f"goals.{name}", getattr(goals, name), 1)
    for name in ("warmup_steps", *AUXILIARY_HEADS):
        at_least(f"goals.{name}", getattr(goals, name), 0)
    above_zero("goals.action", goals.action)
    between("goals.views_share", goals.views_share, 0, 1)
    between("goals.own_goals", goals.own_goals, 0, 1)
    heads = auxiliary_heads(goals)
    if missing := [name for name in goals.keep if name not in heads]:
        raise UserError(
            f"goals.keep: there is no head {missing[0]!r}, of those that train: {', '.join(heads) or 'none'}"
        )
    if not heads and (goals.warmup_steps or goals.views_share):
        raise UserError("views teach nothing but auxiliary heads, and all of them weigh 0: "
                         "set goals.warmup_steps=0 and goals.views_share=0")  # fmt: skip
    if "auxiliary_heads" in goals.config:
        raise UserError("goals.config.auxiliary_heads follows from the weights: set goals.visibility, goals.point and "
                         "goals.box to 0 or above instead")  # fmt: skip
    if not data.in_memory or data.streaming or data.workers:
        raise UserError("ROCKET-2 takes its samples from memory: set data.in_memory=true, data.streaming=false and "
                         "data.workers=0")  # fmt: skip
    refuse_for_goals(recipe)


def refuse_for_goals(recipe: Recipe) -> None:
    plain = Recipe()
    for name in ("robot", "parts", "lora", "alignment", "teacher", "analysis"):
        if getattr(recipe, name) != getattr(plain, name):
            raise UserError(f"{name} has no meaning for ROCKET-2, which this recipe trains: leave it out")
    for section, names in (
        ("data", ("augmentation",)),
        ("optimizer", ("projector_lr", "conflicts")),
        ("run", ("base_dtype", "compile", "quantize")),
    ):
        for name in names:
            if getattr(getattr(recipe, section), name) != getattr(getattr(plain, section), name):
                raise UserError(f"{section}.{name} has no meaning for ROCKET-2, which this recipe trains: leave it out")
    for dataset in recipe.data.datasets:
        if dataset != DatasetConfig(dataset.id):
            raise UserError(f"of the dataset {dataset.id} ROCKET-2 takes all rooms and columns: give its id alone")


def auxiliary_heads(goals: GoalRecipe) -> list[str]:
    """Those that weigh anything."""
    return [name for name in AUXILIARY_HEADS if getattr(goals, name) > 0]


def check_numbers(recipe: Recipe) -> None:
    run, optimizer, data = recipe.run, recipe.optimizer, recipe.data
    for name in ("steps", "batch_size", "log_every", "save_every", "keep", "validate_every", "validation_samples"):
        at_least(f"run.{name}", getattr(run, name), 1)
    at_least("run.device_batch_size", run.device_batch_size, 1)
    at_least("run.most_skipped", run.most_skipped, 1)
    at_least("lora.rank", recipe.lora.rank, 1)
    at_least("lora.alpha", recipe.lora.alpha, 1)
    at_least("data.workers", data.workers, 0)
    at_least("data.prefetch", data.prefetch, 1)
    between("data.validation", data.validation, 0, 0.999)
    for name, (least, most) in AUGMENTATION.items():
        between(f"data.augmentation.{name}", getattr(data.augmentation, name), least, most)
    between("run.ema", run.ema, 0, 0.9999999)
    between("lora.dropout", recipe.lora.dropout, 0, 0.999)
    for name in ("lr", "heads_lr", "projector_lr", "eps", "clip_norm"):
        above_zero(f"optimizer.{name}", getattr(optimizer, name))
    at_least("optimizer.weight_decay", optimizer.weight_decay, 0)
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise UserError(f"optimizer.betas are two numbers from 0 to below 1, got {optimizer.betas}")


def check_schedule(recipe: Recipe) -> None:
    schedule = recipe.schedule
    at_least("schedule.warmup", schedule.warmup, 0)
    between("schedule.final", schedule.final, 0, 1)
    above_zero("schedule.factor", schedule.factor)
    if schedule.kind == "step" and not schedule.at:
        raise UserError("schedule.kind step needs schedule.at, the steps at which the learning rates fall")
    if schedule.until is not None and schedule.kind != "cosine":
        raise UserError(f"schedule.until belongs to schedule.kind cosine, this one is {schedule.kind}")
    if schedule.until is not None and schedule.until <= schedule.warmup:
        raise UserError(
            f"schedule.until={schedule.until} must come after schedule.warmup={schedule.warmup}, "
            "since the rates fall from there on"
        )
    if schedule.at and (schedule.kind != "step" or schedule.at != sorted(schedule.at)):
        raise UserError("schedule.at are ascending steps, and belong to schedule.kind step")


def check_analysis(recipe: Recipe) -> None:
    at_least("analysis.gradient_agreement_every", recipe.analysis.gradient_agreement_every, 0)
    if recipe.analysis.gradient_agreement_every and recipe.alignment is None:
        raise UserError(
            "analysis.gradient_agreement_every compares layer pairs, and this recipe aligns none: set it to 0"
        )


def above_zero(name: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise UserError(f"{name} must be above 0, got {value}")


def at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and value < least:
        raise UserError(f"{name} must be at least {least}, got {value}")


def between(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise UserError(f"{name} must lie between {low} and {high:g}, got {value}")


def passes(recipe: Recipe, ranks: int) -> tuple[int, int]:
    """Samples per pass on one device, and passes per step, so that a step has `run.batch_size` samples."""
    whole, each = recipe.run.batch_size, recipe.run.device_batch_size
    if whole % ranks:
        raise UserError(f"run.batch_size={whole} cannot be shared by {ranks} processes: choose a multiple of {ranks}")
    each = each or whole // ranks
    if whole % (ranks * each):
        raise UserError(
            f"run.batch_size={whole} is no multiple of {ranks} processes x run.device_batch_size={each}: change one"
        )
    return each, whole // (ranks * each)

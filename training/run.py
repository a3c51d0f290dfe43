"""The state of a run: its model, optimizer, folder, checkpoints and journal. `setup.py` creates it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from torch import Tensor, nn

from rocket_hf.errors import UserError
from rocket_hf.files import TEMPORARY_SUFFIX
from rocket_hf.folder_lock import LOCK, FolderLock

from .checkpoint import Checkpoints, Progress
from .distributed.agreement import RankBatches, on_main_process, shared_errors
from .distributed.placement import Optimizer
from .input_fingerprints import INPUTS, Fingerprints, write_fingerprints
from .input_origins import ORIGINS, write_origins
from .journal import Journal, StepTimer, read_journal
from .optimization import MovingAverage
from .recipe import BaseRecipe, VLARecipe
from .recipe_files import changed_settings, different_keys, read_run_recipe, write_recipe
from .task import TrainingTask
from .vla.gradient_projection import GradientProjection

# Contents of the folder of a run.
RECIPE, JOURNAL, CHECKPOINTS, POLICY = "recipe.yaml", "journal.jsonl", "checkpoints", "policy"
# Files in the folder of a run that was killed before it started.
FILES_BEFORE_START = (INPUTS, ORIGINS, LOCK)

# Arguments of the trackers' own functions that name a run. TensorBoard names a run by its folder.
RUN_NAME_ARGUMENTS = {"trackio": "name", "wandb": "name"}
TENSORBOARD = "tensorboard"

# Settings that may change when a run is resumed. Any other change would make it a different run.
CHANGEABLE_ON_RESUME = (
    "run.steps", "run.log_every", "run.save_every", "run.keep", "run.trackers", "run.device_batch_size", "run.compile",
    "run.gradient_checkpointing", "run.max_skipped_steps", "data.workers", "data.prefetch",
    "analysis.gradient_agreement_every", "analysis.parameters",
)  # fmt: skip


@dataclass
class TrainState:
    """Everything that one training step needs."""

    recipe: BaseRecipe
    accelerator: Accelerator
    task: TrainingTask
    model: nn.Module  # called by the loop: the policy, or the wrapper of DDP or DeepSpeed around it
    optimizer: Optimizer
    average: MovingAverage | None
    timer: StepTimer
    gradient_projection: GradientProjection | None

    @property
    def policy(self) -> Any:
        return self.task.policy


@dataclass
class Run(TrainState):
    out: Path
    batches: RankBatches[list[Any]]  # this rank's batches of each step
    checkpoints: Checkpoints
    journal: Journal
    progress: Progress = field(default_factory=Progress)
    unflushed_batches: list[list[Any]] = field(default_factory=list)  # of the steps whose metrics are not yet written


@contextmanager
def locked_run_folder(out: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of a run's folder in the main process. All ranks raise if another process holds it."""
    with ExitStack() as stack:
        with shared_errors():
            if accelerator.is_main_process:
                stack.enter_context(FolderLock(out))
        yield


@dataclass
class StartedRun:
    """A run that is resumed: its recipe, and the step of its last checkpoint, if it has any."""

    recipe: BaseRecipe
    step: int | None


def find_started_run(out: Path, resume: bool) -> StartedRun | None:
    """Return the run in a folder if it is resumed. A new run, for which this returns None, needs an empty folder."""
    recipe_file = out / RECIPE
    if resume and not recipe_file.is_file():
        raise UserError(f"there is no run to resume in {out}: remove --resume to start one")
    if resume:
        steps = Checkpoints(out / CHECKPOINTS, keep=1).steps()
        return StartedRun(read_run_recipe(recipe_file), steps[-1] if steps else None)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another folder with --out")
    if out.exists() and not all(map(is_written_before_start, out.iterdir())):
        raise UserError(f"{out} is not empty: pass --resume to resume the run in it, or choose another --out")
    return None


def is_written_before_start(path: Path) -> bool:
    """Return whether a file may be left by a run that was killed before its recipe was written."""
    is_temporary = path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX)
    return path.name in FILES_BEFORE_START or is_temporary


def check_same_recipe(started: StartedRun, recipe: BaseRecipe, out: Path) -> None:
    previous = started.recipe
    if type(previous) is not type(recipe):
        kinds = f"a {type(previous).__name__}, the given recipe is a {type(recipe).__name__}"
        raise UserError(f"the run in {out} was started with {kinds}: pass its own recipe")
    keys = [key for key in different_keys(previous, recipe) if key not in CHANGEABLE_ON_RESUME]
    if keys:
        raise UserError(f"{', '.join(keys)} differ from the run in {out}: use the values of {out / RECIPE}")
    if started.step is not None and recipe.run.steps < started.step:
        raise UserError(
            f"the run in {out} has already done {started.step} steps, but the recipe asks for {recipe.run.steps}: "
            f"pass --set run.steps=N with N of at least {started.step}"
        )


def create_run_folder(recipe: BaseRecipe, fingerprints: Fingerprints, out: Path, accelerator: Accelerator) -> None:
    """Create the folder with the recipe, and start the trackers. Called after everything else has been checked."""

    def write() -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_fingerprints(fingerprints, out)
            write_origins(recipe, out)
            write_recipe(recipe, out / RECIPE)  # last: a folder with a recipe is a complete new run
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror}; choose another folder with --out") from error

    on_main_process(accelerator, write)
    if recipe.run.trackers:
        accelerator.log_with = named_trackers(accelerator.log_with, recipe, out)
        accelerator.init_trackers("rocket_hf", config=tracked_settings(recipe), init_kwargs=tracker_arguments(recipe))


def tracker_arguments(recipe: BaseRecipe) -> dict[str, dict[str, str]]:
    """Return the arguments that give the run its name in each tracker."""
    return {name: {RUN_NAME_ARGUMENTS[name]: recipe.name} for name in recipe.run.trackers if name in RUN_NAME_ARGUMENTS}


def named_trackers(trackers: list[Any], recipe: BaseRecipe, out: Path) -> list[Any]:
    """Replace "tensorboard" by a tracker that writes to a folder of the run's name, instead of the project's."""
    name = recipe.name.replace("/", "-")
    return [TensorBoardTracker(name, out / TENSORBOARD) if str(each) == TENSORBOARD else each for each in trackers]


def tracked_settings(recipe: BaseRecipe) -> dict[str, int | float | str]:
    """Return the changed settings as numbers and strings, the only types that all trackers accept."""
    return {
        key: value if isinstance(value, int | float | str) else str(value) for key, value in changed_settings(recipe)
    }


def create_journal(
    out: Path, accelerator: Accelerator, progress: Progress, notes: list[str], recipe: BaseRecipe
) -> Journal:
    """Create or reopen the journal; print the notes and write them to it. A new journal begins with the robot."""

    def mean_over_ranks(numbers: Tensor) -> Tensor:
        return accelerator.reduce(numbers, "mean")

    def track(values: dict[str, Any], step: int) -> None:
        accelerator.log(values, step=step)

    journal = Journal(out / JOURNAL if accelerator.is_main_process else None, track, mean_over_ranks)
    if not accelerator.is_main_process:
        return journal
    journal.truncate_after(progress.step)
    if isinstance(recipe, VLARecipe) and not progress.step:
        journal.write([{"step": 0, "robot": asdict(recipe.robot)}])
    written = {record.get("note") for record in read_journal(out / JOURNAL)}
    for note in filter(None, notes):
        accelerator.print(f"note: {note}")
        if note not in written:  # a resumed run has the notes of its start
            journal.write([{"step": progress.step, "note": note}])
    return journal

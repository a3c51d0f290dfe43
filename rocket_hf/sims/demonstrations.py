"""Recording of scripted experts as a LeRobot dataset.

Simulator processes run and render the episodes; this process writes them in a fixed order, so that the dataset does not
depend on the number of processes. An interrupted recording is a readable dataset of the finished episodes, and the same
call resumes it. After kill -9 the same call resumes it too, but until then the dataset may be unreadable.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.files import create_folder
from rocket_hf.folder_lock import FolderLock, is_unused

from .dataset_writer import create_dataset, resume_dataset
from .expert import ATTEMPT_SEED_STEP, ATTEMPTS, Demonstration, DemonstrationRequest, ExpertSimulator
from .interruption import Interruption
from .names import require_known
from .process_pool import Simulator, SimulatorPool
from .recording import (
    RECORDING_FILE,
    RecordingPlan,
    RecordingProgress,
    parse_progress,
    read_recording,
    require_complete_dataset,
    require_same_plan,
    save_recording,
)
from .recording_journal import JOURNAL, RecordingJournal
from .recording_writer import COMMIT_BYTES_AFTER_KILL, RecordingWriter, write_errors_reported
from .settings import parse_environment_name
from .suites import make_environment, require_expert, task_names


def record(
    folder: Path,
    suite: str,
    tasks: Sequence[str],
    episodes: int,
    image_size: int = 128,
    depth: bool = False,
    workers: int = 2,
    first_seed: int = 0,
) -> RecordingProgress:
    """Record `episodes` demonstrations of each task. After an interruption the same call resumes the recording.

    `suite` is an environment name, such as `metaworld` or `metaworld:heights=0..0.12`.
    """
    suite = parse_environment_name(suite).name
    plan = RecordingPlan(suite, tuple(tasks), episodes, image_size, depth, first_seed)
    check_plan(plan, workers)

    def create(path: Path) -> Any:
        environment = make_environment(suite, plan.tasks[0], image_size)
        dataset = create_dataset(path, environment, image_size, depth)
        environment.close()
        return dataset

    requests = [DemonstrationRequest(suite, task, seed, image_size, depth) for task, seed in plan.episode_seeds()]
    return record_episodes(folder, plan, requests, ExpertSimulator, workers, create, resume_dataset)


def record_episodes(
    folder: Path,
    plan: Any,
    requests: Sequence[Any],
    make_simulator: Callable[[], Simulator[Any, Demonstration]],
    workers: int,
    create_dataset: Callable[[Path], Any],
    resume_dataset: Callable[[Path], Any],
) -> RecordingProgress:
    """Record one episode for each request, in their order. Resume the recording if the folder contains a part of it.

    A request has a `task`. `create_dataset` creates lerobot's dataset in a folder, and `resume_dataset` opens it for
    writing.
    """
    with FolderLock(folder):
        progress = load_progress(folder, plan)
        if progress is not None and progress.episodes == len(requests):
            RecordingJournal(folder).remove()  # It exists if the process was killed at the very end.
            return progress
        with SimulatorPool(make_simulator, processes=0 if workers == 1 else workers) as pool:
            if progress is None:
                progress = start_recording(folder, plan, create_dataset)
            writer = RecordingWriter(folder, plan, progress, requests, resume_dataset)
            write_episodes(writer, pool)
    return progress


def load_progress(folder: Path, plan: Any) -> RecordingProgress | None:
    """Return the progress of the recording in this folder, or None if there is none yet.

    The dataset of a killed recording is restored to its last readable state; the journal has the episodes since then.
    """
    journal = RecordingJournal(folder)
    if journal.state is not None:
        require_same_plan(folder, journal.state, plan)
        journal.restore()
        return parse_progress(journal.state["progress"], journal.path)
    journal.remove()  # It may lack a state, if the process was killed when it started or ended.
    if is_unused(folder):
        return None
    recording = read_recording(folder)
    require_same_plan(folder, recording, plan)
    progress = parse_progress(recording["progress"], folder / RECORDING_FILE)
    require_complete_dataset(folder, progress)
    return progress


def start_recording(folder: Path, plan: Any, create_dataset: Callable[[Path], Any]) -> RecordingProgress:
    """Create a dataset without episodes. It appears in the folder completely or not at all."""
    progress = RecordingProgress()
    new = folder / JOURNAL / folder.name
    create_folder(new.parent)
    try:
        with write_errors_reported(folder):
            create_dataset(new).finalize()
            save_recording(new, plan, progress)
            (new / "meta").rename(folder / "meta")
    finally:
        shutil.rmtree(folder / JOURNAL)
    return progress


def check_plan(plan: RecordingPlan, workers: int) -> None:
    known, settings = task_names(plan.suite), parse_environment_name(plan.suite)
    for task in plan.tasks:
        require_known(plan.suite, "task", task, known)
        require_expert(plan.suite, task)
        settings.require_task(task)
    if len(set(plan.tasks)) < len(plan.tasks):
        raise UserError(f"a task is named more than once: {', '.join(plan.tasks)}")
    for name, value in (("tasks", len(plan.tasks)), ("episodes", plan.episodes), ("workers", workers)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    last_seed = plan.first_seed + plan.episodes - 1 + (ATTEMPTS - 1) * ATTEMPT_SEED_STEP
    if plan.first_seed < 0 or last_seed >= 2**32:
        largest = 2**32 - 1 - last_seed + plan.first_seed
        raise UserError(f"the seed of the first episode must be between 0 and {largest}, got {plan.first_seed}")
    if plan.image_size < 16 or plan.image_size % 2:
        raise UserError(
            f"the image size must be even and at least 16, because the video encoder requires it: got {plan.image_size}"
        )


def write_episodes(writer: RecordingWriter, pool: SimulatorPool[Any, Demonstration]) -> None:
    """Record all remaining episodes of the plan."""
    interruption = Interruption()
    progress, count = writer.progress, len(writer.requests)
    bar = tqdm(total=count, initial=progress.episodes, desc="episodes", leave=False, disable=None)
    with interruption.listen(), bar:
        try:
            writer.start_journal()
            for demonstration, size in writer.episodes_in_journal():
                with interruption.shield():
                    writer.write(demonstration, size, COMMIT_BYTES_AFTER_KILL)
                bar.update()
            for request, demonstration in pool.map_in_order(writer.requests[progress.episodes :]):
                with interruption.shield():
                    writer.add(demonstration)
                bar.set_postfix_str(request.task)
                bar.update()
        finally:
            interruption.shielded = True  # A second Ctrl-C must not cut off the end of the files.
            writer.close()

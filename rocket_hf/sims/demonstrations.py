"""Recording of scripted experts as a LeRobot dataset.

Simulator processes run and render the episodes; this process writes them in a fixed order, so that the dataset does not
depend on the number of processes. An interrupted recording is a readable dataset of the finished episodes, and the same
call resumes it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rocket_hf.errors import UserError

from .dataset_writer import open_writer, write_episode
from .expert import Demonstration, DemonstrationRequest, ExpertSimulator
from .interruption import Interruption
from .names import require_known
from .process_pool import Simulator, SimulatorPool
from .recording import RecordingPlan, RecordingProgress, load_progress, save_recording
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
    """Record `episodes` demonstrations of each task. After a KeyboardInterrupt the same call resumes the recording."""
    plan = RecordingPlan(suite, tuple(tasks), episodes, image_size, depth, first_seed)
    check_plan(plan, workers)

    def open_dataset(resume: bool) -> Any:
        environment = make_environment(suite, plan.tasks[0], image_size)
        dataset = open_writer(folder, environment, image_size, depth, resume)
        environment.close()
        return dataset

    requests = [DemonstrationRequest(suite, task, seed, image_size, depth) for task, seed in plan.episode_seeds()]
    return record_episodes(folder, plan, requests, ExpertSimulator, workers, open_dataset)


def record_episodes(
    folder: Path,
    plan: Any,
    requests: Sequence[Any],
    make_simulator: Callable[[], Simulator[Any, Demonstration]],
    workers: int,
    open_dataset: Callable[[bool], Any],
) -> RecordingProgress:
    """Record one episode for each request, in their order. Resume the recording if the folder contains a part of it.

    A request has a `task`. `open_dataset(resume)` returns lerobot's dataset for writing.
    """
    progress = load_progress(folder, plan)
    if progress.episodes < len(requests):
        write_episodes(folder, plan, progress, requests, make_simulator, workers, open_dataset)
    return progress


def check_plan(plan: RecordingPlan, workers: int) -> None:
    known = task_names(plan.suite)
    for task in plan.tasks:
        require_known(plan.suite, "task", task, known)
        require_expert(plan.suite, task)
    if len(set(plan.tasks)) < len(plan.tasks):
        raise UserError(f"a task is named more than once: {', '.join(plan.tasks)}")
    for name, value in (("tasks", len(plan.tasks)), ("episodes", plan.episodes), ("workers", workers)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if plan.image_size < 16 or plan.image_size % 2:
        raise UserError(
            f"the image size must be even and at least 16, because the video encoder requires it: got {plan.image_size}"
        )


def write_episodes(
    folder: Path,
    plan: Any,
    progress: RecordingProgress,
    requests: Sequence[Any],
    make_simulator: Callable[[], Simulator[Any, Demonstration]],
    workers: int,
    open_dataset: Callable[[bool], Any],
) -> None:
    interruption = Interruption()
    bar = tqdm(total=len(requests), initial=progress.episodes, desc="episodes", leave=False, disable=None)
    with SimulatorPool(make_simulator, processes=0 if workers == 1 else workers) as pool:
        try:
            dataset = open_dataset(progress.episodes > 0)
        except OSError as error:
            raise UserError(f"the dataset {folder} cannot be written: {error}") from error
        save_recording(folder, plan, progress)
        with interruption.listen(), bar:
            try:
                for request, demonstration in pool.map_in_order(requests[progress.episodes :]):
                    with interruption.shield():
                        write_episode(dataset, demonstration)
                        progress.add(request.task, len(demonstration.frames), demonstration.failed_attempts)
                    bar.set_postfix_str(request.task)
                    bar.update()
            finally:
                interruption.shielded = True  # A second Ctrl-C must not cut off the end of the files.
                dataset.finalize()
                save_recording(folder, plan, progress)

"""Records scripted experts as a LeRobot dataset: workers simulate and draw, this process writes, in the same order
whatever their number.

An interruption leaves a readable dataset of the episodes that are finished; the same call goes on from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rocket_hf.errors import UserError

from .dataset_writer import open_writer, write_episode
from .expert import Demonstration, ExpertWorker, Job
from .interruption import Interruption
from .names import require_known
from .process_pool import Simulator, SimulatorPool
from .recording import Plan, Progress, open_recording, save
from .suites import make_environment, require_expert, task_names


@dataclass(frozen=True)
class Recorded:
    episodes: int
    frames: int
    dropped: int  # starts that the expert failed
    episodes_by_task: dict[str, int]
    frames_by_task: dict[str, int]
    dropped_by_task: dict[str, int]


def record(
    folder: Path,
    suite: str,
    tasks: Sequence[str],
    episodes: int,
    image_size: int = 128,
    depth: bool = False,
    workers: int = 2,
    first_seed: int = 0,
) -> Recorded:
    """`episodes` of each task. KeyboardInterrupt, if it must be, leaves the folder readable and ready to go on."""
    plan = Plan(suite, tuple(tasks), episodes, image_size, depth, first_seed)
    check(plan, workers)

    def open_dataset(resume: bool) -> Any:
        environment = make_environment(suite, plan.tasks[0], image_size)
        dataset = open_writer(folder, environment, image_size, depth, resume)
        environment.close()
        return dataset

    jobs = [Job(suite, task, seed, image_size, depth) for task, seed in plan.starts()]
    return record_jobs(folder, plan, jobs, ExpertWorker, workers, open_dataset)


def record_jobs(
    folder: Path,
    plan: Any,
    jobs: Sequence[Any],
    make_worker: Callable[[], Simulator[Any, Demonstration]],
    workers: int,
    open_dataset: Callable[[bool], Any],
) -> Recorded:
    """One episode for each job, in their order. `open_dataset(resume)` is lerobot's writer; a job has a task."""
    progress = open_recording(folder, plan)
    if progress.episodes < len(jobs):
        write_all(folder, plan, progress, jobs, make_worker, workers, open_dataset)
    return Recorded(**vars(progress))


def check(plan: Plan, workers: int) -> None:
    known = task_names(plan.suite)
    for task in plan.tasks:
        require_known(plan.suite, "task", task, known)
        require_expert(plan.suite, task)
    if len(set(plan.tasks)) < len(plan.tasks):
        raise UserError(f"a task is named twice: {', '.join(plan.tasks)}")
    for name, value in (("tasks", len(plan.tasks)), ("episodes", plan.episodes), ("workers", workers)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if plan.image_size < 16 or plan.image_size % 2:
        raise UserError(f"the image size must be even and at least 16, for the video's sake, got {plan.image_size}")


def write_all(
    folder: Path,
    plan: Any,
    progress: Progress,
    jobs: Sequence[Any],
    make_worker: Callable[[], Simulator[Any, Demonstration]],
    workers: int,
    open_dataset: Callable[[bool], Any],
) -> None:
    interruption = Interruption()
    bar = tqdm(total=len(jobs), initial=progress.episodes, desc="episodes", leave=False, disable=None)
    with SimulatorPool(make_worker, processes=0 if workers == 1 else workers) as pool:
        dataset = open_dataset(progress.episodes > 0)
        save(folder, plan, progress)
        with interruption.listen(), bar:
            try:
                for job, demonstration in pool.map_in_order(jobs[progress.episodes :]):
                    with interruption.shield():
                        write_episode(dataset, demonstration)
                        progress.add(job.task, len(demonstration.frames), demonstration.dropped)
                    bar.set_postfix_str(job.task)
                    bar.update()
            finally:
                interruption.shielded = True  # A second Ctrl-C must not cut off the end of the files.
                dataset.finalize()
                save(folder, plan, progress)

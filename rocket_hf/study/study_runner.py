"""Runner of a study: its units in parallel processes with one thread each, on all cores or one per GPU.

It may end at any moment: a unit counts as complete when its result is written, and every command resumes what it has
begun.
"""

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.formatting import format_duration

from .study_folder import StudyFolder
from .study_plan import StudyPlan
from .study_units import THREADS, Unit
from .unit_process import Program, UnitProcess
from .unit_results import read_unit_result

POLL_SECONDS = 0.1
GRACE_SECONDS = 30.0  # in which interrupted commands may finish the file that they write
MOST_FAILURES = 3  # failed units after which no others are started


@dataclass
class RunningUnit:
    """Unit in progress, with the index of its core or GPU."""

    unit: Unit
    slot: int
    process: UnitProcess
    start: float = field(default_factory=time.monotonic)


class StudyRunner:
    """Runner of the units of some phases.

    `gpus` are the indices of the GPUs; without, units use one core each. `program` is the main function of `rocket-hf`.
    """

    def __init__(
        self,
        folder: StudyFolder,
        plan: StudyPlan,
        phases: Sequence[str],
        workers: int,
        gpus: Sequence[int],
        program: Program,
    ):
        self.folder, self.plan, self.phases, self.program = folder, plan, list(phases), program
        self.workers, self.gpus = workers, list(gpus)
        self.running: list[RunningUnit] = []
        self.failed: dict[str, str] = {}  # unit -> reason
        self.commit = source_commit()

    def run(self) -> None:
        """Run all remaining units; raise a UserError at the end if some have failed."""
        units = self.plan.units(self.phases)
        remaining = [unit for unit in units if unit.name not in self.folder.results]
        done = len(units) - len(remaining)
        bar = tqdm(total=len(units), initial=done, desc=self.folder.study.name, unit="unit", disable=None,
                   bar_format="{desc} {n_fmt} of {total_fmt} units |{bar}| {elapsed}, {postfix}")  # fmt: skip
        with bar, self.stopped_at_exit():
            while True:
                self.start_ready(remaining, bar)
                if not self.running:
                    break
                self.wait()
                ended = self.collect()
                remaining = self.plan.remaining(self.phases)
                for unit in ended:
                    self.print_end(unit, bar, remaining)
        if self.failed:
            raise UserError(self.describe_failures())

    def start_ready(self, remaining: list[Unit], bar: tqdm) -> None:
        busy = {running.unit.name for running in self.running}
        for unit in remaining:
            if len(self.running) >= self.workers or len(self.failed) >= MOST_FAILURES:
                return
            is_ready = all(needed.name in self.folder.results for needed in unit.needs)
            if is_ready and unit.name not in busy and unit.name not in self.failed:
                bar.write(f"$ {unit.command}")
                self.start(unit)

    def start(self, unit: Unit) -> None:
        slot = min(set(range(self.workers)) - {running.slot for running in self.running})
        is_started = unit.resume_file is not None and (unit.out / unit.resume_file).is_file()
        words = [*unit.words, *(["--resume"] if is_started else [])]
        device = str(self.gpus[slot % len(self.gpus)]) if self.gpus else ""
        # The tokenizers library would start threads of its own.
        environment = THREADS | {"CUDA_VISIBLE_DEVICES": device, "TOKENIZERS_PARALLELISM": "false"}
        log = self.folder.log_path(unit.name)
        with log.open("a") as file:
            file.write(f"$ {unit.command}\n")
        self.running.append(RunningUnit(unit, slot, UnitProcess(self.program, words, log, environment)))

    def wait(self) -> None:
        while all(running.process.exit_code is None for running in self.running):
            time.sleep(POLL_SECONDS)

    def collect(self) -> list[Unit]:
        """Store the results of the units that have ended; return these units."""
        ended = [running for running in self.running if running.process.exit_code is not None]
        self.running = [running for running in self.running if running not in ended]
        for running in ended:
            unit, code, cpu_seconds = running.unit, running.process.exit_code, running.process.cpu_seconds()
            running.process.close()
            if code:
                self.failed[unit.name] = last_line(self.folder.log_path(unit.name))
                continue
            result = {
                "unit": unit.name,
                "command": unit.command,
                "commit": self.commit,
                "seconds": round(time.monotonic() - running.start, 1),
                "cpu_seconds": round(cpu_seconds, 1),
            }
            self.folder.add_result(unit.name, result | read_unit_result(unit))
        return [running.unit for running in ended]

    def print_end(self, unit: Unit, bar: tqdm, remaining: list[Unit]) -> None:
        """Print the end of a unit with the estimated remaining time, also where there is no progress bar."""
        if unit.name in self.failed:
            bar.write(f"failed  {unit.name}: {self.failed[unit.name]}")
            return
        bar.total = bar.n + 1 + len(remaining)
        bar.set_postfix_str(self.format_remaining(remaining), refresh=False)
        bar.update()
        seconds = self.folder.results[unit.name]["seconds"]
        bar.write(f"done    {unit.name} in {seconds:.0f} s; {len(remaining)} units, {self.format_remaining(remaining)}")

    @contextmanager
    def stopped_at_exit(self) -> Iterator[None]:
        """Stop all running units at the end of the block: first with SIGTERM, then by killing them."""
        try:
            yield
        finally:
            try:
                for running in self.running:
                    running.process.signal_group(signal.SIGTERM)
                end = time.monotonic() + GRACE_SECONDS
                while time.monotonic() < end and any(running.process.exit_code is None for running in self.running):
                    time.sleep(POLL_SECONDS)
            finally:
                for running in self.running:
                    running.process.signal_group(signal.SIGKILL)
                    running.process.close()
                self.running = []

    def format_remaining(self, remaining: list[Unit]) -> str:
        """Return the estimated remaining time, from the mean duration of completed units of each kind."""
        durations: dict[str, list[float]] = {}
        for name, result in self.folder.results.items():
            durations.setdefault(name.partition("/")[0], []).append(result["seconds"])
        known = [unit for unit in remaining if unit.kind in durations]
        seconds = sum(sum(durations[unit.kind]) / len(durations[unit.kind]) for unit in known) / self.workers
        qualifier = "about" if len(known) == len(remaining) else "more than"
        return f"{qualifier} {format_duration(seconds)} remaining"

    def describe_failures(self) -> str:
        name, reason = next(iter(self.failed.items()))
        others = f" (and {len(self.failed) - 1} other units)" if len(self.failed) > 1 else ""
        return (
            f"{name} failed{others}: {reason}; its output is in {self.folder.log_path(name)}. Fix the error, then "
            "repeat the command to resume"
        )


def last_line(log: Path) -> str:
    """Return the last line of a command's output, without a full stop."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("$ ")]
    return lines[-1].rstrip(".;") if lines else "no output"


def source_commit() -> str | None:
    """Return the commit of this package's checkout, with "+changes" if files differ from it; None without one."""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--untracked-files=no", "--", "rocket_hf", "training", "modeling"]
        changes = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes.strip() else "")

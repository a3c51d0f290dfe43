"""The journal of a run: one line of JSON per step, also sent to accelerate's trackers if the recipe selects some.

Losses stay on the device until the metrics of several steps are written at once, so that no step waits for the device.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.files import write_text


class Journal:
    """Writer of a run's metrics. Only the main process has a path; `reduce` averages metrics over the ranks."""

    def __init__(
        self,
        path: Path | None,
        track: Callable[[dict[str, float], int], None],
        reduce: Callable[[Tensor], Tensor],
    ):
        self.path, self.track, self.reduce = path, track, reduce
        self.pending: list[tuple[int, dict[str, Any]]] = []  # steps and their metrics

    def add(self, step: int, **values: Any) -> None:
        """Add metrics of a step: numbers, tensors of one number, or other JSON values. None is left out."""
        self.pending.append((step, {name: value for name, value in values.items() if value is not None}))

    def flush(self) -> list[dict[str, Any]]:
        """Write the steps added since the last call; return them with numbers in place of tensors."""
        tensors = [value for _, values in self.pending for value in values.values() if isinstance(value, Tensor)]
        scalars = [value.detach().float().reshape(()) for value in tensors]
        numbers = iter(self.reduce(torch.stack(scalars)).tolist() if scalars else [])
        records = []
        for step, values in self.pending:
            plain = {name: next(numbers) if isinstance(value, Tensor) else value for name, value in values.items()}
            records.append({"step": step} | {name: total_seconds(value) for name, value in plain.items()})
        self.pending = []
        if self.path is not None:
            for record in records:
                self.track({name: value for name, value in record.items() if isinstance(value, float)}, record["step"])
            self.write(records)
        return records

    def write(self, records: list[dict[str, Any]]) -> None:
        if self.path is None or not records:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free space and resume with --resume"
            ) from error

    def write_metrics(self, step: int, **values: float) -> None:
        """Write metrics of a step immediately, in a line of their own."""
        if self.path is not None:
            self.track(values, step)
            self.write([{"step": step} | values])

    def truncate_after(self, step: int) -> None:
        """Remove the lines of later steps, and an incomplete last line: the resumed run writes them again."""
        if self.path is None or not self.path.exists():
            return
        kept = []
        try:
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n") or json.loads(line)["step"] > step:
                    break
                kept.append(line)
        except (KeyError, OSError, TypeError, ValueError) as error:  # KeyError, TypeError: a record without a step
            raise UserError(f"cannot read the journal {self.path}: {error}; remove it to resume without it") from error
        write_text(self.path, "".join(kept))


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Read the records of a journal; return none if there is no file."""
    if not path.is_file():
        return []
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, RecursionError, ValueError) as error:
        raise UserError(f"cannot read the journal {path}: {error}; resume the run to repair its last line") from error
    if not all(isinstance(record, dict) and isinstance(record.get("step"), int) for record in records):
        raise UserError(f"the journal {path} has a record without a step: restore the file, or remove it")
    return records


class TimedInterval:
    """An interval on the device: on a GPU between two events of its queue, which are read only in `seconds`."""

    def __init__(self, device: torch.device):
        self.is_cuda = device.type == "cuda"
        self.start: Any = self.now()
        self.end: Any = None

    def now(self) -> Any:
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self) -> None:
        self.end = self.now()

    def seconds(self) -> float:
        if not self.is_cuda:
            return self.end - self.start
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1000


class StepTimer:
    """Timer of the phases of a step: `with timer("student"): ...`. A phase may run several times per step."""

    def __init__(self, device: torch.device):
        self.device = device
        self.intervals: dict[str, list[TimedInterval]] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        interval = TimedInterval(self.device)
        yield
        interval.stop()
        self.intervals.setdefault(phase, []).append(interval)

    def pop_intervals(self) -> dict[str, list[TimedInterval]]:
        """Return the intervals since the last call as "seconds/PHASE"; `Journal.flush` converts them to seconds."""
        intervals = {f"seconds/{phase}": entries for phase, entries in self.intervals.items()}
        self.intervals = {}
        return intervals


def total_seconds(value: Any) -> Any:
    """Convert a list of intervals to their total seconds; return other values unchanged."""
    if isinstance(value, list) and value and isinstance(value[0], TimedInterval):
        return round(sum(interval.seconds() for interval in value), 6)
    return value

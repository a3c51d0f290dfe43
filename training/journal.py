"""What a run writes down: one line of JSON per step, and the same to accelerate's trackers where some are asked for.

Losses stay on the device until a number of steps are written at once, so that no step waits for the device.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Journal:
    """Only the main process has a path and writes; what the others measured is averaged with it by `reduce`."""

    def __init__(
        self,
        path: Path | None,
        track: Callable[[dict[str, float], int], None],
        reduce: Callable[[Tensor], Tensor],
    ):
        self.path, self.track, self.reduce = path, track, reduce
        self.steps: list[tuple[int, dict[str, Any]]] = []

    def add(self, step: int, **values: Any) -> None:
        """Numbers, tensors of one number, and whatever else JSON can hold. None is left out."""
        self.steps.append((step, {name: value for name, value in values.items() if value is not None}))

    def flush(self) -> list[dict[str, Any]]:
        """Writes the steps since the last time, and returns them with plain numbers in place of tensors."""
        tensors = [value for _, values in self.steps for value in values.values() if isinstance(value, Tensor)]
        stacked = [value.detach().float().reshape(()) for value in tensors]
        numbers = iter(self.reduce(torch.stack(stacked)).tolist() if stacked else [])
        records = []
        for step, values in self.steps:
            plain = {name: next(numbers) if isinstance(value, Tensor) else value for name, value in values.items()}
            records.append({"step": step} | {name: plain_time(value) for name, value in plain.items()})
        self.steps = []
        if self.path is not None:
            for record in records:
                self.track({name: value for name, value in record.items() if isinstance(value, float)}, record["step"])
            self.write(records)
        return records

    def write(self, records: list[dict[str, Any]]) -> None:
        if self.path is not None and records:
            with self.path.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)

    def tell(self, step: int, **values: float) -> None:
        """What is known of a step besides its losses."""
        if self.path is not None:
            self.track(values, step)
            self.write([{"step": step} | values])

    def forget_after(self, step: int) -> None:
        """Drops the lines of later steps, and a line that a kill cut short: a resumed run writes them again."""
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(kept))
        fresh.replace(self.path)


def read_journal(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


class Span:
    """A stretch of time: on a GPU between two events in its queue, which are read when the journal is written."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = [self.now(), None]

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self) -> None:
        self.marks[1] = self.now()

    def seconds(self) -> float:
        start, stop = self.marks
        if not self.cuda:
            return stop - start
        stop.synchronize()
        return start.elapsed_time(stop) / 1000


class Times:
    """The seconds that each part of a step takes: `with times("student"): ...`, several times if need be."""

    def __init__(self, device: torch.device):
        self.device = device
        self.spans: dict[str, list[Span]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        span = Span(self.device)
        yield
        span.stop()
        self.spans.setdefault(name, []).append(span)

    def take(self) -> dict[str, list[Span]]:
        """The spans since the last time, by "seconds/NAME"."""
        taken = {f"seconds/{name}": spans for name, spans in self.spans.items()}
        self.spans = {}
        return taken


def plain_time(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], Span):
        return round(sum(span.seconds() for span in value), 6)
    return value

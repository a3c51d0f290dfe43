"""Journal of an evaluation: results of finished episodes, so that a killed evaluation resumes after them.

Each line of the file is one episode with a key of everything that its result depends on. The file is removed when the
report is written.
"""

import json
from collections.abc import Collection, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError

from .episode_simulator import EpisodeStart

JOURNAL = ".episodes.jsonl"


class ResultJournal:
    """Results of one policy in a journal, as JSON values.

    `dependencies` are the policy's fingerprint and all settings that affect the results.
    """

    def __init__(self, path: Path, dependencies: Any):
        self.path = path
        self.key = sha256(json.dumps(dependencies, sort_keys=True, default=str).encode()).hexdigest()

    def read(self) -> Iterator[dict[str, Any]]:
        for line in self.path.read_bytes().splitlines() if self.path.is_file() else []:
            try:
                record = json.loads(line)
                if record["key"] == self.key:
                    yield record["result"]
            except (ValueError, KeyError, TypeError):
                continue  # The process was killed while it wrote this line.

    def add(self, result: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                # An incomplete line of a killed process ends here.
                file.write("\n" + json.dumps({"key": self.key, "result": result}) + "\n")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}; choose another --out") from error


class EpisodeJournal(ResultJournal):
    """Results of a vision-language-action policy by the start of the episode."""

    def __init__(self, path: Path, dependencies: Any):
        super().__init__(path, dependencies)
        self.results = {EpisodeStart(result["task"], result["seed"]): result for result in self.read()}

    def resumable(self, tasks: Collection[str], shows_images: bool) -> dict[EpisodeStart, dict[str, Any]]:
        """Return the results that need not be repeated.

        The images of the first successful and the first failed episode are not stored, so these are repeated if a
        report shows them.
        """
        order = {task: number for number, task in enumerate(tasks)}
        starts = sorted((start for start in self.results if start.task in order), key=lambda start: (
            order[start.task], start.seed
        ))  # fmt: skip
        first = {self.results[start]["success"]: start for start in reversed(starts)} if shows_images else {}
        return {start: self.results[start] for start in starts if start not in first.values()}

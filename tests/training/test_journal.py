"""The journal: complete lines of JSON, means over ranks, truncation on resume, and timing."""

import json

import torch

from rocket_hf.training.journal import Journal, StepTimer


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tensors_of_several_steps_are_reduced_in_one_call(tmp_path):
    tracked, reduced = [], []

    def reduce(numbers):
        reduced.append(len(numbers))
        return numbers * 10

    journal = Journal(tmp_path / "journal.jsonl", lambda values, step: tracked.append((step, values)), reduce)
    for step in (1, 2):
        journal.add(step, loss=torch.tensor(float(step)), rate=0.5, note=None, name="a")
    assert not journal.path.exists() and not reduced
    records = journal.flush()
    assert reduced == [2]
    assert read_lines(journal.path) == records == [
        {"step": 1, "loss": 10.0, "rate": 0.5, "name": "a"}, {"step": 2, "loss": 20.0, "rate": 0.5, "name": "a"},
    ]  # fmt: skip
    assert tracked == [(1, {"loss": 10.0, "rate": 0.5}), (2, {"loss": 20.0, "rate": 0.5})]
    assert journal.flush() == [] and len(read_lines(journal.path)) == 2


def test_rank_without_a_path_reduces_and_writes_nothing(tmp_path):
    journal = Journal(None, lambda values, step: 1 / 0, lambda numbers: numbers)
    journal.add(1, loss=torch.tensor(2.0))
    assert journal.flush() == [{"step": 1, "loss": 2.0}]
    journal.write([{"step": 1}])
    journal.truncate_after(0)
    assert not list(tmp_path.iterdir())


def test_truncation_removes_later_steps_and_an_incomplete_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 2, 3)) + '{"step": 4, "lo')
    journal = Journal(path, lambda values, step: None, lambda numbers: numbers)
    journal.truncate_after(3)
    assert [line["step"] for line in read_lines(path)] == [1, 2, 2, 3]
    journal.truncate_after(2)
    assert [line["step"] for line in read_lines(path)] == [1, 2, 2]
    path.write_text('{"step": 1}\n{"step": 2, "loss": 1.')
    journal.truncate_after(9)
    assert read_lines(path) == [{"step": 1}]
    journal.truncate_after(0)
    assert path.read_text() == ""


def test_seconds_of_a_phase_are_summed_over_its_passes(tmp_path):
    timer, journal = StepTimer(torch.device("cpu")), Journal(tmp_path / "j", lambda *_: None, lambda numbers: numbers)
    for phase in ("data", "student", "data"):
        with timer(phase):
            pass
    journal.add(1, **timer.pop_intervals())
    journal.add(2, **timer.pop_intervals())
    first, second = journal.flush()
    assert set(first) == {"step", "seconds/data", "seconds/student"} and first["seconds/data"] >= 0
    assert second == {"step": 2}

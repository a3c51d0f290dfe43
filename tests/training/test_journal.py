"""The journal: complete lines of JSON, the mean over ranks, and what a resumed run forgets."""

import json

import torch

from rocket_hf.training.journal import Journal, Times


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_losses_stay_on_the_device_until_steps_are_written_at_once(tmp_path):
    tracked, asked = [], []

    def reduce(numbers):
        asked.append(len(numbers))
        return numbers * 10

    journal = Journal(tmp_path / "journal.jsonl", lambda values, step: tracked.append((step, values)), reduce)
    for step in (1, 2):
        journal.add(step, loss=torch.tensor(float(step)), rate=0.5, note=None, name="a")
    assert not journal.path.exists() and not asked
    records = journal.flush()
    assert asked == [2]
    assert lines(journal.path) == records == [
        {"step": 1, "loss": 10.0, "rate": 0.5, "name": "a"}, {"step": 2, "loss": 20.0, "rate": 0.5, "name": "a"},
    ]  # fmt: skip
    assert tracked == [(1, {"loss": 10.0, "rate": 0.5}), (2, {"loss": 20.0, "rate": 0.5})]
    assert journal.flush() == [] and len(lines(journal.path)) == 2


def test_a_rank_without_a_path_reduces_and_writes_nothing(tmp_path):
    journal = Journal(None, lambda values, step: 1 / 0, lambda numbers: numbers)
    journal.add(1, loss=torch.tensor(2.0))
    assert journal.flush() == [{"step": 1, "loss": 2.0}]
    journal.write([{"step": 1}])
    journal.forget_after(0)
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_forgets_later_steps_and_a_line_that_a_kill_cut_short(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 2, 3)) + '{"step": 4, "lo')
    journal = Journal(path, lambda values, step: None, lambda numbers: numbers)
    journal.forget_after(3)
    assert [line["step"] for line in lines(path)] == [1, 2, 2, 3]
    journal.forget_after(2)
    assert [line["step"] for line in lines(path)] == [1, 2, 2]
    path.write_text('{"step": 1}\n{"step": 2, "loss": 1.')
    journal.forget_after(9)
    assert lines(path) == [{"step": 1}]
    journal.forget_after(0)
    assert path.read_text() == ""


def test_the_seconds_of_a_part_are_summed_over_its_passes(tmp_path):
    times, journal = Times(torch.device("cpu")), Journal(tmp_path / "j", lambda *_: None, lambda numbers: numbers)
    for part in ("data", "student", "data"):
        with times(part):
            pass
    journal.add(1, **times.take())
    journal.add(2, **times.take())
    first, second = journal.flush()
    assert set(first) == {"step", "seconds/data", "seconds/student"} and first["seconds/data"] >= 0
    assert second == {"step": 2}

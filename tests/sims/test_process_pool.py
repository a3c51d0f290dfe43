"""Simulator processes: order of replies, errors, killed processes, and the end of the pool."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rocket_hf.errors import UserError
from rocket_hf.sims.process_pool import SimulatorError, SimulatorPool


class CountingSimulator:
    """Appends numbers to its own history. `folder` gets one file when a simulator is closed."""

    def __init__(self, folder: Path | None = None):
        self.folder, self.history = folder, []

    def handle(self, request):
        if request == "user error":
            raise UserError("Setting 'x' is wrong: use 'y'.")
        if request == "bug":
            raise KeyError("missing")
        if request == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if request == "exit":
            os._exit(3)
        if request == "sleep":
            time.sleep(600)
        self.history.append(request)
        return tuple(self.history)

    def close(self):
        if self.folder is not None:
            (self.folder / f"closed-{os.getpid()}-{id(self)}").touch()


class SlowFirstSimulator(CountingSimulator):
    def handle(self, request):
        time.sleep(0.3 if request == 0 else 0)
        return request, os.getpid()


def no_children() -> bool:
    return not multiprocessing.active_children()


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_each_simulator_keeps_its_state_for_any_number_of_processes(processes, tmp_path):
    with SimulatorPool(functools.partial(CountingSimulator, tmp_path), processes) as pool:
        assert pool.run({2: "a", 0: "b", 1: "c"}) == {0: ("b",), 1: ("c",), 2: ("a",)}
        assert list(pool.run({1: "d", 0: "e"}).items()) == [(0, ("b", "e")), (1, ("c", "d"))]
    assert no_children() and len(list(tmp_path.iterdir())) == 3, "every simulator is closed"


@pytest.mark.parametrize("processes", [0, 2])
def test_mapped_replies_have_the_order_of_their_requests(processes):
    with SimulatorPool(SlowFirstSimulator, processes) as pool:
        replies = list(pool.map_in_order(range(9)))
    assert [request for request, _ in replies] == [number for _, (number, _) in replies] == list(range(9))
    assert len({process for _, (_, process) in replies}) == max(1, processes)


def test_mapped_requests_are_started_only_a_few_ahead():
    started = []
    with SimulatorPool(SlowFirstSimulator, processes=2) as pool:
        replies = pool.map_in_order(started.append(number) or number for number in range(100))
        next(replies)
        assert len(started) == 5


@pytest.mark.parametrize("processes", [0, 1])
def test_user_error_of_a_simulator_is_the_same_user_error_in_the_parent(processes):
    with SimulatorPool(CountingSimulator, processes) as pool:
        with pytest.raises(UserError, match=r"^Setting 'x' is wrong: use 'y'\.$"):
            pool.run({0: "user error"})
        assert pool.run({0: "a"}) == {0: ("a",)}, "the process stays alive"


def test_bug_in_a_simulator_process_keeps_its_traceback():
    with (
        SimulatorPool(CountingSimulator, processes=1) as pool,
        pytest.raises(SimulatorError, match=r"(?s)KeyError: 'missing'.*in handle\n.*raise KeyError"),
    ):
        pool.run({0: "bug"})


def test_killed_process_is_reported_and_the_others_end():
    with (
        pytest.raises(UserError, match=r"killed by signal 9\. If memory ran out, lower --workers"),
        SimulatorPool(CountingSimulator, processes=2) as pool,
    ):
        pool.run({0: "a", 1: "die"})
    assert no_children()


def test_process_that_exits_by_itself_is_a_bug():
    with (
        pytest.raises(SimulatorError, match="ended with exit code 3"),
        SimulatorPool(CountingSimulator, processes=1) as pool,
    ):
        list(pool.map_in_order(["a", "exit", "b"]))
    assert no_children()


def test_interruption_ends_a_busy_process_at_once_and_closes_its_simulators(tmp_path):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    def run_until_interrupted():
        with SimulatorPool(functools.partial(CountingSimulator, tmp_path), processes=1) as pool:
            pool.run({0: "a"})
            signal.alarm(1)
            list(pool.map_in_order(["sleep"] * 3))

    former = signal.signal(signal.SIGALRM, interrupt)
    begin = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_until_interrupted()
    finally:
        signal.signal(signal.SIGALRM, former)
    assert time.monotonic() - begin < 60 and no_children()
    assert len(list(tmp_path.iterdir())) == 1


KILLED_PARENT = """
import os, sys
from rocket_hf.sims.process_pool import SimulatorPool
from tests.sims.test_process_pool import CountingSimulator

if __name__ == "__main__":
    pool = SimulatorPool(CountingSimulator, processes=1)
    pool.run({0: "a"})
    print(pool.processes[0].process.pid, flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_end_when_the_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(KILLED_PARENT)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    parent = subprocess.run(
        [sys.executable, tmp_path / "parent.py"], capture_output=True, text=True, env=environment, cwd=root, check=False
    )
    process = Path(f"/proc/{int(parent.stdout)}")
    deadline = time.monotonic() + 30
    while process.exists() and " Z " not in (process / "stat").read_text():
        assert time.monotonic() < deadline, "the worker process is still alive"
        time.sleep(0.1)

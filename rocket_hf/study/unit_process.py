"""Processes of a study's units. Each runs one `rocket-hf` command and ends with the study, however that ends.

They are forked from a server process that has imported the libraries, because importing them takes as long as many of
the commands. Each is the leader of a process group of its own. When the study is killed, so is the whole group, so that
two commands never write to the same folder.
"""

import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

# Modules of the commands, without simulators, whose libraries may not be forked.
PRELOADED = ["rocket_hf.training.train", "rocket_hf.export.policy_folder", "rocket_hf.evaluation.rollouts",
             "rocket_hf.evaluation.trained_policy", "rocket_hf.commands"]  # fmt: skip
Program = Callable[[list[str]], int]
LAUNCHED = ("train", "--num_processes", "1")  # first words of a training


class UnitProcess:
    """Running command whose output is appended to a log file.

    `program` is the main function of `rocket-hf`, and `environment` are the environment variables of the command.
    """

    def __init__(self, program: Program, words: Sequence[str], log: Path, environment: dict[str, str]):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.connection, sender = context.Pipe(duplex=False)
        # The server reads the number of threads when it imports the libraries.
        os.environ |= {name: value for name, value in environment.items() if name.endswith("_NUM_THREADS")}
        self.process = context.Process(target=run_unit, args=(program, list(words), log, environment, sender))
        self.process.start()
        sender.close()

    @property
    def exit_code(self) -> int | None:
        """Exit code of the command, None while it is running, negative if a signal has ended it."""
        return self.process.exitcode

    def cpu_seconds(self) -> float:
        """Return the CPU time of an ended process and its children."""
        with suppress(EOFError):
            if self.connection.poll():
                return self.connection.recv()
        return 0.0  # It was killed.

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and its children."""
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)  # also before it has become the leader of its group
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Wait for the end of the process, which must have ended or been killed."""
        self.process.join()
        self.process.close()
        self.connection.close()


def run_unit(
    program: Program, words: list[str], log: Path, environment: dict[str, str], connection: Connection
) -> None:
    """Run a command in a forked process, and exit with its code."""
    os.setsid()
    threading.Thread(target=kill_group_with_study, daemon=True).start()
    os.environ |= environment
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    is_training = tuple(words[: len(LAUNCHED)]) == LAUNCHED
    # A training saves a checkpoint at SIGTERM; it sets its own handler before its first step.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = run_training(words[len(LAUNCHED) :]) if is_training else program(words)
    usages = [resource.getrusage(processes) for processes in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    connection.send(sum(usage.ru_utime + usage.ru_stime for usage in usages))
    sys.exit(code)


def run_training(words: list[str]) -> int:
    """Train in this process, as `accelerate launch` does in a new one if there is only one process."""
    from rocket_hf.training.train import main

    return main(words)


def kill_group_with_study() -> None:
    """Wait until the study has ended, then kill the process group."""
    study = multiprocessing.parent_process()
    assert study is not None
    study.join()
    os.killpg(0, signal.SIGKILL)

"""Pool of simulator processes, shared by recording and evaluation.

A simulator answers requests: to step one environment, or to record one whole episode. It keeps its environment between
requests, so each simulator has a number and stays in one process. Replies do not depend on the number of processes.
"""

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock
from types import FrameType, TracebackType
from typing import Protocol, Self

from rocket_hf.errors import USER_ERRORS, UserError, format_error

GRACE = 10.0  # seconds that a process has to close its simulators before it is killed


class Simulator[Request, Reply](Protocol):
    """Interface of simulators. They are created in the process in which they run."""

    def handle(self, request: Request, /) -> Reply: ...

    def close(self) -> None: ...


class SimulatorError(RuntimeError):
    """A bug in a simulator process; the message holds the traceback from there."""


class SimulatorPool[Request, Reply]:
    """Simulators in `processes` worker processes, or in this process if `processes` is 0.

    Leaving the context ends all processes; after an exception (also Ctrl-C) without waiting for requests in progress. A
    UserError in a simulator is raised as the same UserError here, any other exception as a SimulatorError.
    """

    def __init__(self, make_simulator: Callable[[], Simulator[Request, Reply]], processes: int):
        self.local = SimulatorGroup(make_simulator)
        self.processes = [SimulatorProcess[Request, Reply](make_simulator) for _ in range(processes)]
        self.threads = ThreadPoolExecutor(max(1, processes))  # one waits for each process

    def run(self, requests: Mapping[int, Request]) -> dict[int, Reply]:
        """Send one request to each of the numbered simulators; return their replies, sorted by number."""
        if not self.processes:
            replies = self.local.handle(requests)
        else:
            shares: dict[int, dict[int, Request]] = {}
            for number, request in requests.items():
                shares.setdefault(number % len(self.processes), {})[number] = request
            futures = [self.threads.submit(self.processes[index].handle, share) for index, share in shares.items()]
            replies = {number: reply for future in futures for number, reply in future.result().items()}
        return {number: replies[number] for number in sorted(replies)}

    def map_in_order(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Yield each request with its reply, in the order of the requests. Any free simulator may answer.

        The processes are at most 2 * processes requests ahead, because a recorded episode takes some 20 MB.
        """
        if not self.processes:
            yield from ((request, self.local.handle({0: request})[0]) for request in requests)
            return
        free: SimpleQueue[SimulatorProcess[Request, Reply]] = SimpleQueue()
        for process in self.processes:
            free.put(process)

        def handle(request: Request) -> Reply:
            process = free.get()
            try:
                return process.handle({0: request})[0]
            finally:
                free.put(process)

        pending: deque[tuple[Request, Future[Reply]]] = deque()
        for request in requests:
            pending.append((request, self.threads.submit(handle, request)))
            if len(pending) > 2 * len(self.processes):
                first, future = pending.popleft()
                yield first, future.result()
        yield from ((request, future.result()) for request, future in pending)

    def close(self, abort: bool = False) -> None:
        """End all processes; with `abort`, without waiting for requests in progress."""
        with ExitStack() as stack:  # Runs every step even if one is interrupted by a second Ctrl-C.
            for process in self.processes:
                stack.callback(process.connection.close)
            stack.callback(self.threads.shutdown)
            for process in self.processes:
                stack.callback(process.join_or_kill)
            for process in self.processes:
                stack.callback(process.stop, abort)
            stack.callback(self.threads.shutdown, wait=False, cancel_futures=True)
            stack.callback(self.local.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(abort=error is not None)


class SimulatorGroup[Request, Reply]:
    """The simulators of one process, created at their first request."""

    def __init__(self, make_simulator: Callable[[], Simulator[Request, Reply]]):
        self.make_simulator = make_simulator
        self.simulators: dict[int, Simulator[Request, Reply]] = {}

    def handle(self, requests: Mapping[int, Request]) -> dict[int, Reply]:
        replies = {}
        for number, request in requests.items():
            if number not in self.simulators:
                self.simulators[number] = self.make_simulator()
            replies[number] = self.simulators[number].handle(request)
        return replies

    def close(self) -> None:
        with ExitStack() as stack:
            for simulator in self.simulators.values():
                stack.callback(simulator.close)
        self.simulators = {}


@dataclass(frozen=True)
class Failure:
    """An exception in a simulator process; `traceback` is None for problems that a user can fix."""

    message: str
    traceback: str | None = None

    def as_exception(self) -> Exception:
        if self.traceback is None:
            return UserError(self.message)
        return SimulatorError(f"{self.message}\n\nTraceback from the simulator process:\n{self.traceback}")


class SimulatorProcess[Request, Reply]:
    """One worker process and the connection to it."""

    def __init__(self, make_simulator: Callable[[], Simulator[Request, Reply]]):
        context = multiprocessing.get_context("spawn")  # OpenGL contexts do not survive a fork.
        self.connection, remote = context.Pipe()
        self.process = context.Process(target=serve, args=(remote, make_simulator), daemon=True)
        self.process.start()
        remote.close()  # so that the end of the process ends `recv` here
        self.send_lock = Lock()

    def handle(self, requests: Mapping[int, Request]) -> dict[int, Reply]:
        try:
            with self.send_lock:
                self.connection.send(requests)
            reply = self.connection.recv()
        except (EOFError, OSError):
            raise self.explain_end() from None
        if isinstance(reply, Failure):
            raise reply.as_exception()
        return reply

    def explain_end(self) -> Exception:
        self.process.join(timeout=5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return UserError(
                f"A simulator process was killed by signal {-code}. If memory ran out, lower --workers "
                "(or --parallel of `rocket-hf eval`)."
            )
        return SimulatorError(f"A simulator process ended with exit code {code}; its traceback is printed above.")

    def stop(self, abort: bool) -> None:
        """Ask the process to end after the request in progress; with `abort`, interrupt that request."""
        with suppress(OSError), self.send_lock:
            self.connection.send(None)
        if abort:
            self.process.terminate()

    def join_or_kill(self) -> None:
        try:
            self.process.join(GRACE)
        finally:
            self.process.kill()
            self.process.join()


def serve(connection: Connection, make_simulator: Callable[[], Simulator]) -> None:
    """Run a worker process: answer requests until the parent sends None or has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends Ctrl-C to workers too, but the parent ends them.
    signal.signal(signal.SIGTERM, exit_process)
    simulators = SimulatorGroup(make_simulator)
    try:
        while (requests := connection.recv()) is not None:
            connection.send(answer(simulators, requests))
    except (EOFError, ConnectionError):
        pass  # The parent has died.
    finally:
        simulators.close()


def answer(simulators: SimulatorGroup, requests: Mapping[int, object]) -> dict[int, object] | Failure:
    try:
        return simulators.handle(requests)
    except USER_ERRORS as error:
        return Failure(format_error(error))
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def exit_process(number: int, frame: FrameType | None) -> None:
    """Signal handler that ends the process through its `finally` blocks, which close the simulators."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + number)

"""Worlds in worker processes: any that follow orders and say how things are then."""

import multiprocessing
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Protocol, Self

from rocket_hf.errors import USER_ERRORS


class World[Order, Moment](Protocol):
    def follow(self, order: Order, /) -> Moment: ...

    def close(self) -> None: ...


class Worlds[Order, Moment]:
    """Numbered worlds, spread over worker processes, or in this one where `workers` is 0."""

    def __init__(self, make: Callable[[], World[Order, Moment]], workers: int):
        self.make = make
        self.here: dict[int, World[Order, Moment]] = {}
        context = multiprocessing.get_context("spawn")  # OpenGL does not survive a fork
        self.links: list[Connection] = []
        self.processes = []
        for _ in range(workers):
            link, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, make), daemon=True)
            process.start()
            theirs.close()
            self.links.append(link)
            self.processes.append(process)

    def run(self, orders: Mapping[int, Order]) -> dict[int, Moment]:
        """Follows one order in each of some worlds, all workers at a time; the moments by world, in order."""
        if not self.links:
            return follow(self.here, orders, self.make)
        workers = len(self.links)
        shares: list[dict[int, Order]] = [{} for _ in self.links]
        for world, order in orders.items():
            shares[world % workers][world] = order
        busy = [number for number, share in enumerate(shares) if share]
        for number in busy:
            self.send(number, shares[number])
        moments: dict[int, Moment] = {}
        for number in busy:
            moments |= self.receive(number)
        return {world: moments[world] for world in sorted(moments)}

    def send(self, number: int, share: dict[int, Order]) -> None:
        try:
            self.links[number].send(share)
        except OSError:
            raise self.lost(number) from None

    def receive(self, number: int) -> dict[int, Moment]:
        try:
            answer = self.links[number].recv()
        except (EOFError, OSError):
            raise self.lost(number) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def lost(self, number: int) -> ValueError:
        self.processes[number].join(timeout=5)
        code = self.processes[number].exitcode
        return ValueError(
            f"a worker process of the simulator ended with exit code {code}: "
            "if memory ran out, run fewer environments at a time (--parallel)"
        )

    def close(self) -> None:
        for world in self.here.values():
            world.close()
        for link in self.links:
            link.close()
        for process in self.processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def follow[Order, Moment](
    worlds: dict[int, World[Order, Moment]], orders: Mapping[int, Order], make: Callable[[], World[Order, Moment]]
) -> dict[int, Moment]:
    moments = {}
    for number, order in orders.items():
        if number not in worlds:
            worlds[number] = make()
        moments[number] = worlds[number].follow(order)
    return moments


def serve(link: Connection, make: Callable[[], World]) -> None:
    """A worker: answers orders until the other end closes. An interrupt is the other end's to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worlds: dict[int, World] = {}
    try:
        while True:
            try:
                orders = link.recv()
            except EOFError:
                return
            try:
                link.send(follow(worlds, orders, make))
            except BrokenPipeError:
                return
            except USER_ERRORS as error:
                link.send(error)
    finally:
        for world in worlds.values():
            world.close()

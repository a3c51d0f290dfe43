"""Decisions of the main process that all ranks share, and user errors that all ranks raise together.

The folder of a run, a dataset or a policy may be damaged or missing on one machine only. A rank that fails alone would
leave the others waiting for it, until they fail with an error of the connection. Therefore ranks that read inputs or
write outputs communicate by `exchange`, in a block of `shared_errors`: a rank that has failed takes part in the next
exchange of the others, and all of them raise its error.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object

from rocket_hf.errors import USER_ERRORS, UserError, format_error

type Processes = Accelerator | PartialState


class SharedError(UserError):
    """User error that all ranks raise together. Each machine prints it once."""


def exchange[Value](value: Value, error: Exception | None = None) -> list[Value]:
    """Return the values of all ranks. If a rank has an error instead, all ranks raise it as a SharedError."""
    failure = None if error is None else format_error(error)
    replies = gather_object([(value, failure, socket.gethostname())])
    failures = {rank: (text, host) for rank, (_, text, host) in enumerate(replies) if text is not None}
    if failures:
        rank = min(failures)
        text, host = failures[rank]
        raise SharedError(text if rank == 0 else f"process {rank} on {host}: {text}") from error
    return [value for value, _, _ in replies]


@contextmanager
def shared_errors() -> Iterator[None]:
    """Raise the user error of one rank in all ranks. Inside the block, an error must not miss any other communication
    than `exchange`."""
    try:
        yield
    except SharedError:
        raise
    except USER_ERRORS as error:
        exchange(None, error)
    else:
        exchange(None)


def on_main_process[Result](processes: Processes, function: Callable[[], Result]) -> Result:
    """Call a function in the main process, and return its result in all ranks."""
    result: Any = function() if processes.is_main_process else None
    return exchange(result)[0]


@contextmanager
def main_process_first(processes: Processes) -> Iterator[None]:
    """Run a block in the main process before all other ranks, and not in these if it raises a user error."""
    if not processes.is_main_process:
        exchange(None)
    yield
    if processes.is_main_process:
        exchange(None)


def disconnect(processes: Processes) -> None:
    """End the communication of all ranks. Each must call this at its end, because gloo aborts connected processes.

    All ranks wait for each other first. After an exchange, a thread of gloo may still be freeing its tensors, for which
    it needs Python's lock. Freeing the connections in this moment would hold the lock and wait for that thread forever;
    waiting for the other ranks releases the lock.
    """
    processes.wait_for_everyone()
    PartialState().destroy_process_group()


class RankBatches[Batch](Iterator[Batch]):
    """This rank's batches of each step. With several ranks, a user error of the data is deferred.

    The other ranks are training, and learn of the error only when all ranks call `raise_deferred_error`. Until then the
    previous batch is repeated, and the weights must not be saved.
    """

    def __init__(self, batches: Iterator[Batch], processes: Processes):
        self.batches, self.is_deferring = batches, processes.num_processes > 1
        self.previous: Batch | None = None
        self.error: Exception | None = None

    def __next__(self) -> Batch:
        if self.error is None:
            try:
                self.previous = next(self.batches)
            except USER_ERRORS as error:
                if not self.is_deferring or self.previous is None:
                    raise
                self.error = error
        assert self.previous is not None
        return self.previous

    def raise_deferred_error(self) -> None:
        if self.error is not None:
            raise self.error

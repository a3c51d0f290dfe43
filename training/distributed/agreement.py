"""Decisions of the main process that all ranks share, and user errors that all ranks raise together.

The folder of a run may exist on the machine of the main process only. A rank that fails alone would leave the others
waiting for it, until they fail with an error of the connection.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from rocket_hf.errors import UserError


class MainProcessError(UserError):
    """Error of the main process, raised in the other ranks. Only the main process prints it."""


def on_main_process[Result](accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Call a function in the main process, and return its result in all ranks. Its UserError is raised in all ranks."""
    outcome: list = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = str(error)
            broadcast_object_list(outcome)
            raise
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise MainProcessError(failure)
    return result


@contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Run a block in the main process before all other ranks, and not in these if it raises a UserError."""
    if not accelerator.is_main_process:
        (failure,) = broadcast_object_list([None])
        if failure is not None:
            raise MainProcessError(failure)
    try:
        yield
    except UserError as error:
        if accelerator.is_main_process:
            broadcast_object_list([str(error)])
        raise
    if accelerator.is_main_process:
        broadcast_object_list([None])

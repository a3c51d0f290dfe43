"""Delay of Ctrl-C and SIGTERM (the end of a batch job) until a file is completely written."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Handler of both signals. It raises KeyboardInterrupt at once, or at the end of a `shield()` block."""

    def __init__(self) -> None:
        self.shielded = self.pending = False

    @contextmanager
    def listen(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals only to the main thread
            return
        previous = {number: signal.signal(number, self.receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if not self.shielded:
            raise KeyboardInterrupt
        self.pending = True

    @contextmanager
    def shield(self) -> Iterator[None]:
        self.shielded = True
        try:
            yield
        finally:
            self.shielded = False
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt

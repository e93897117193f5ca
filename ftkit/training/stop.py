"""What Ctrl-C and SIGTERM do to a training: the step is finished and saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Ctrl-C or SIGTERM: the present step is finished and saved, then training stops. Ctrl-C again saves nothing more.

    Attributes:
        signal: number of the signal that came to this process; 0 if none has.
        agreed: number of a signal that came to any process, as all of them know since the last optimiser step.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.agreed = 0

    @contextmanager
    def listening(self, say: bool) -> Iterator[None]:
        """Take the signals over. Python lets only the main thread do so; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _frame: FrameType | None) -> None:
            # torchrun passes Ctrl-C on, so that a worker gets it twice.
            if self.signal and number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
                raise KeyboardInterrupt
            if say and not self.signal:
                os.write(sys.stderr.fileno(), b"\nfinishing this step and saving it; Ctrl-C again saves nothing more\n")
            self.signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

"""SIGTERM and SIGUSR1 ask a run to save and leave; it does so at the end of a step, on all ranks or on none.

A signal reaches the ranks at different times, or only some of them, so what each has heard is put together after every
step. SIGINT is not listened for: Ctrl-C ends at once, and the newest train state is what remains.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch

from .. import ranks
from ..errors import McontrieverError

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later
LISTENED_FOR = (signal.SIGTERM, signal.SIGUSR1)
# Slurm and systemd signal a launcher and its ranks, and the launcher passes it on: that is one request, not two.
SAME_SECONDS = 5.0


class StoppedBySignal(McontrieverError):
    """The run was asked to leave, and has saved its state."""

    exit_code = EXIT_CODE


class Request:
    """Listens while its block runs. The first signal is remembered; one that comes later than a moment ends at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._heard: signal.Signals | None = None
        self._when = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Request:
        if threading.current_thread() is threading.main_thread():  # Python lets no other install handlers
            self._before = {number: signal.signal(number, self._hear) for number in LISTENED_FOR}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def made(self) -> bool:
        """Whether any rank was asked to leave; every rank calls, and all get the same answer."""
        return ranks.sum_over_ranks([self._heard is not None], self._device)[0] > 0

    def leave(self, step: int) -> StoppedBySignal:
        """What to raise once the state after `step` steps is saved."""
        name = self._heard.name if self._heard else "a signal to another rank"
        return StoppedBySignal(f"stopped by {name}; the state after step {step} is saved, the same command goes on")

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._heard is not None and time.monotonic() - self._when > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._heard is None:
            self._heard, self._when = signal.Signals(number), time.monotonic()
            if ranks.is_main():
                sys.stderr.write(f"{self._heard.name}: saving after this step; a second one ends at once\n")

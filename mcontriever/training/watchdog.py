"""Ends a run that stands still, and says where it stood: one hung rank makes all the others wait without a word.

Every rank has a watchdog of its own. All of them fire at about the same time, since no rank steps without the others;
each says whether it waits for the others or what keeps it, so the culprit can be told from its victims. A rank that
says nothing has been stopped, or its machine is gone.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType

from .. import ranks

EXIT_CODE = 1
OTHERS_SPEAK_SECONDS = 5.0  # a launcher kills all ranks when the first one ends
STUCK_SECONDS = 30.0  # later than this, the C library ends a process whose interpreter does not run any more
_WAITING = ("torch/distributed/", "deepspeed/comm/")


class Watchdog:
    """`beat` it wherever the run gets on. Silence for `seconds` ends the process; 0 watches nothing."""

    def __init__(self, seconds: float, end: Callable[[int], object] = os._exit) -> None:
        self._seconds, self._end = seconds, end
        self._doing, self._last, self._armed = "starting", time.monotonic(), 0.0
        self._over = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self.beat(self._doing)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._armed:
            faulthandler.cancel_dump_traceback_later()

    def beat(self, doing: str) -> None:
        """A sign of life, and what comes next, in words for the report."""
        self._doing, self._last = doing, time.monotonic()
        if self._seconds and self._last - self._armed > min(1.0, self._seconds):  # arming starts a thread
            faulthandler.dump_traceback_later(self._seconds + STUCK_SECONDS, exit=True, file=2)
            self._armed = self._last

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            silent = time.monotonic() - self._last
            if silent > self._seconds:
                os.write(2, self._report(silent).encode())
                self._over.wait(OTHERS_SPEAK_SECONDS)
                self._end(EXIT_CODE)
                return

    def _report(self, silent: float) -> str:
        frames, names = sys._current_frames(), {thread.ident: thread.name for thread in threading.enumerate()}
        who = f"rank {ranks.rank()} of {ranks.world_size()}"
        where = _where(frames[self._watched])
        lines = [f"no sign of life for {silent:.0f} s (guard.hang_seconds) while {self._doing}; {where}; ending"]
        for thread, frame in frames.items():
            if thread != threading.get_ident():
                lines.append(f"thread {names.get(thread, thread)}:")
                lines += "".join(traceback.format_stack(frame)).splitlines()
        return "".join(f"{who}: {line}\n" for line in lines)


def _where(frame: FrameType) -> str:
    """Whether the innermost call is one that waits for other ranks."""
    path = frame.f_code.co_filename
    if any(part in path.replace(os.sep, "/") for part in _WAITING):
        return f"it waits for the other ranks in {frame.f_code.co_name}"
    return f"it is itself in {frame.f_code.co_name}, {path}:{frame.f_lineno}"

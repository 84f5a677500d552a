"""Progress of anything over two seconds: a live bar on a terminal, plain lines elsewhere, rate and ETA in both.

Everything goes to standard error, so that standard output stays a command's result.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

QUIET_SECONDS = 2.0  # shorter work says nothing
LINE_SECONDS = 10.0  # between plain lines


class Bar:
    """One running count. `advance` it; keyword arguments are shown beside the rate (loss=…)."""

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
        shown: bool = True,
        line_seconds: float = LINE_SECONDS,
    ) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._clock, self._first = clock, done
        self._start = self._last = clock()
        self._facts: dict[str, str] = {}
        self._said_at: int | None = None
        self._shown, self._closed, self._line_seconds = shown, False, line_seconds
        self._lock = threading.Lock()

    def advance(self, count: int = 1, **facts: str) -> None:
        """Count on and, when it is time, say so."""
        self.done += count
        self._facts.update(facts)
        now = self._clock()
        wait = 0.2 if self._live else self._line_seconds if self._said_at is not None else QUIET_SECONDS
        if self._shown and now - self._start >= QUIET_SECONDS and now - self._last >= wait:
            self._last = now
            self._say()

    def skip(self, count: int) -> None:
        """So much was done before this began: it counts, and says nothing of how fast things go."""
        self.done += count
        self._first += count

    def tell(self, count: int = 1, **facts: str) -> None:
        """Count on and show these facts: in the live bar, or at once in a line where there is none."""
        self.done += count
        self._facts = facts  # those of before would be taken for news
        if self._shown and not self._live:
            self._last = self._clock()
            self._say()

    def announce(self) -> None:
        """Say where things stand if nothing was said yet, so that a slow first step is not silence."""
        if self._shown and self._said_at is None:
            self._last = self._clock()
            self._say()

    def close(self) -> None:
        """Say the last word, if anything was said before; a plain line that said it already is not repeated."""
        with self._lock:
            self._closed = True
        if self._said_at is not None and (self._live or self._said_at != self.done):
            self._write("\n")

    def line(self) -> str:
        """`Embedding  1,200/5,000 passages  24%  310.0/s  ETA 0:12  loss 1.23`."""
        elapsed = max(self._clock() - self._start, 1e-9)
        rate = (self.done - self._first) / elapsed
        parts = [self.label]
        if self.total is None:
            parts.append(f"{self.done:,} {self.unit}")
        else:
            share = self.done / self.total if self.total else 1.0
            parts += [f"{self.done:,}/{self.total:,} {self.unit}", f"{share:.0%}"]
        parts.append(f"{rate:,.1f}/s" if rate >= 1 else f"{1 / rate:,.1f} s each" if rate else "-")
        if self.total is not None and rate:
            parts.append(f"ETA {duration((self.total - self.done) / rate)}")
        parts += [f"{name} {value}" for name, value in self._facts.items()]
        return "  ".join(parts)

    @property
    def _live(self) -> bool:
        return sys.stderr.isatty()

    def _say(self) -> None:
        with self._lock:  # the announcement comes from another thread
            if not self._closed:
                self._write()

    def _write(self, end: str = "") -> None:
        self._said_at = self.done
        if self._live:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be cleared
            sys.stderr.write(f"\r\x1b[2K{self.line()[:width]}{end}")
        else:
            sys.stderr.write(f"{self.line()}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def bar(
    label: str,
    total: int | None,
    unit: str,
    *,
    done: int = 0,
    shown: bool = True,
    line_seconds: float = LINE_SECONDS,
) -> Iterator[Bar]:
    """A bar for a block; `shown=False` (other ranks) counts in silence. `line_seconds` lie between plain lines."""
    running = Bar(label, total, unit, done, shown=shown, line_seconds=line_seconds)
    timer = threading.Timer(QUIET_SECONDS, running.announce)
    timer.daemon = True
    if shown:
        timer.start()
    try:
        yield running
    finally:
        timer.cancel()
        running.close()


def note(line: str) -> None:
    """A line of its own, which a live bar does not run into."""
    sys.stderr.write(f"\r\x1b[2K{line}\n" if sys.stderr.isatty() else f"{line}\n")
    sys.stderr.flush()


def track(items: Iterable[T], label: str, unit: str, total: int | None = None) -> Iterator[T]:
    """The items themselves, counted on the way."""
    with bar(label, total, unit) as running:
        for item in items:
            yield item
            running.advance()


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03` or `0:07`."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"

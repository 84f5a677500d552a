"""`mcontriever supervise -- COMMAND`: a training job that died is started again as a whole, and goes on from its state.

As a whole, because a single rank that comes back finds its old group broken, and may wait in it for ever. Under
torchrun the ranks' exit codes are lost, and every rank lives in a session of its own; so ranks say in files how they
ended, and are found by a mark in their environment. Only Linux shows it (/proc); elsewhere the command's own process
is all that is signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from .. import artifact, settings
from ..errors import McontrieverError, UsageError
from . import metrics, state
from .guards import BadStep
from .signals import EXIT_CODE, SAME_SECONDS

REPORT = "MCONTRIEVER_REPORT"  # the folder in which the ranks of a supervised job say how they ended; also the mark
LONGEST_WAIT = 600.0
_NOT_MENDED = {  # by a restart
    UsageError.exit_code: "a restart cannot mend what it was given",
    BadStep.exit_code: "a restart would come to the same end, see what it said above",
}
_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class SuperviseSettings:
    """Start COMMAND again, as a whole, whenever it dies; give up when restarts bring nothing new."""

    command: tuple[str, ...] = ()
    """the training command, everything after `--`"""
    retries: int = 3
    """restarts in a row that may pass without a newer train state or line of metrics"""
    wait: float = 10.0
    """seconds before a restart, doubled each time that nothing new came, up to ten minutes"""
    grace: float = 600.0
    """seconds the job has to save and end when this command is told to end; longer than a save"""
    run: str = ""
    """folder of the run, which shows progress; empty: where the command itself says that it writes"""

    def __post_init__(self) -> None:
        settings.in_range("retries", self.retries, 0, 1_000_000)
        settings.in_range("wait", self.wait, 0, 86_400)
        settings.in_range("grace", self.grace, 0, 86_400)
        if not self.command:
            raise UsageError("the command is missing; give it after two dashes: mcontriever supervise -- torchrun …")


class GaveUp(McontrieverError):
    """The job ended in a way that another start does not mend."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def supervise(settings: SuperviseSettings) -> None:
    """Run the command until it ends well, is told to end, or cannot be helped."""
    with tempfile.TemporaryDirectory(prefix="mcontriever-") as folder, _Signals() as signals:
        failures, reached, starts = 0, -1, 0
        while True:
            starts += 1
            reports = Path(folder) / str(starts)
            job = Job(settings.command, reports)
            signals.job = job
            ended = job.wait(lambda: signals.told_at, settings.grace)
            run = Path(settings.run or job.said("output") or "") if settings.run or job.said("output") else None
            outcome = job.said("code") or ended
            if ended == 0:
                return
            what = _in_words(ended, outcome)
            if signals.heard is not None:
                raise GaveUp(f"told to end by {signals.heard.name}; the job {what}", _code(outcome))
            if outcome in _NOT_MENDED:
                raise GaveUp(f"the job {what}: {_NOT_MENDED[outcome]}", outcome)
            now = progress_of(run)
            failures = 0 if now > reached or starts == 1 else failures + 1
            reached = max(reached, now)
            if failures >= settings.retries:
                raise GaveUp(
                    f"the job {what}; {failures} restarts in a row came no further than step {max(0, reached)}; see "
                    "what it said above",
                    _code(outcome),
                )
            pause = min(settings.wait * 2**failures, LONGEST_WAIT)
            _log(run, f"start {starts} {what} after step {max(0, now)}; starting again in {pause:.0f} s")
            if not signals.sleep(pause):
                raise GaveUp(f"told to end by {signals.name} while waiting; the job {what} before", EXIT_CODE)


def report(**facts: Any) -> None:
    """For a rank: tell the supervisor, if there is one, where the run writes (`output`) or how it ends (`code`)."""
    if os.environ.get(REPORT):
        for name, value in facts.items():
            artifact.write_text(Path(os.environ[REPORT]) / f"{name}-{os.environ.get('RANK', '0')}", json.dumps(value))


def progress_of(run: Path | None) -> int:
    """The furthest step that a train state or a line of metrics speaks of; -1 where none does."""
    if run is None:
        return -1
    lines = [line["step"] for line in metrics.read(run / metrics.NAME)]
    return max([*lines, *(step for step, _ in state.states(run))], default=-1)


class Job:
    """One start of the command, in a session of its own, and all processes that came of it."""

    def __init__(self, command: tuple[str, ...], reports: Path) -> None:
        reports.mkdir()
        self._reports, self._mark = reports, f"{REPORT}={reports}".encode()
        try:
            self._process = subprocess.Popen(
                command, env={**os.environ, REPORT: str(reports)}, start_new_session=True, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            raise UsageError(f"supervise: {shlex.join(command)}: {error.strerror}") from error

    def wait(self, told_at: Callable[[], float | None], grace: float) -> int:
        """Until the command ends, or `grace` seconds after it was told to; whatever is left of it is killed."""
        while (code := self._process.poll()) is None and not _over(told_at(), grace):
            time.sleep(0.1)
        while told_at() is not None and self.members() and not _over(told_at(), grace):
            time.sleep(0.1)  # the launcher has gone, its ranks may still be saving
        self.kill()
        return self._process.wait() if code is None else code

    def tell(self, number: int) -> None:
        """Signal the ranks themselves: launchers pass on some signals, or none, or kill what takes its time."""
        for process in self.members(b"LOCAL_RANK=") or [self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def kill(self) -> None:
        """End all that came of the command and is still there."""
        until = time.monotonic() + 30
        while (left := self.members()) and time.monotonic() < until:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def members(self, also: bytes = b"") -> list[int]:
        """Living processes that carry the job's mark, and in their environment a variable beginning as `also`."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_bytes().split(b"\0")  # empty for the dead that nobody waited for
                if self._mark in variables and any(variable.startswith(also) for variable in variables):
                    found.append(int(folder.name))
        return found

    def said(self, name: str) -> Any:
        """What the ranks reported under a name: the worst of exit codes; None where none did."""
        told = [json.loads(path.read_text(encoding="utf-8")) for path in self._reports.glob(f"{name}-*")]
        return max(told, key=lambda value: (value in _NOT_MENDED, value), default=None)


class _Signals:
    """Passes signals on to the job while the block runs; a second one, later than a moment, kills it."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.heard: signal.Signals | None = None
        self.told_at: float | None = None

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._pass_on) for number in _FORWARDED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.job is not None:
            self.job.kill()

    @property
    def name(self) -> str:
        """Of the signal heard."""
        return self.heard.name if self.heard else "nobody"

    def sleep(self, seconds: float) -> bool:
        """Whether the time passed without a signal."""
        until = time.monotonic() + seconds
        while self.heard is None and time.monotonic() < until:
            time.sleep(min(0.1, seconds))
        return self.heard is None

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        assert self.job is not None or self.heard is None
        if self.told_at is None:
            self.heard, self.told_at = signal.Signals(number), time.monotonic()
            if self.job is not None:
                self.job.tell(number)
        elif time.monotonic() - self.told_at > SAME_SECONDS and self.job is not None:
            self.job.kill()


def _over(since: float | None, seconds: float) -> bool:
    return since is not None and time.monotonic() - since > seconds


def _in_words(ended: int, outcome: int) -> str:
    if outcome < 0:
        return f"was killed by {signal.Signals(-outcome).name}"
    return f"ended with exit code {outcome}" + (f" (its launcher with {ended})" if ended != outcome else "")


def _code(outcome: int) -> int:
    return outcome if outcome > 0 else 128 - outcome


def _log(run: Path | None, line: str) -> None:
    told = f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervise: {line}\n"
    sys.stderr.write(told)
    sys.stderr.flush()
    if run is not None and run.is_dir():
        with (run / "supervise.log").open("a", encoding="utf-8") as stream:
            stream.write(told)

"""How the quickstart runs its steps: each once, each as a process of its own, whatever happened to an earlier start.

A step is done when the record says so, its inputs are what they were, and its result is there whole. One that was cut
short is simply started again: the commands go on from where they were, and leave nothing half-written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcontriever.artifact import MANIFEST, is_artifact, sha256, write_text
from mcontriever.errors import McontrieverError, UsageError

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent  # of the environment we run in, activated or not
PORT = "PORT"  # in a command: a free one, chosen when it starts
RECORD = "quickstart.json"
_LAUNCHER = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^]]*\] \[(INFO|WARNING)\]")
_NOT_REDONE = ("token shards", "checkpoint")


@dataclass(frozen=True)
class Step:
    """A command, what it is made from, and what it leaves: an artifact of that `kind`, or a plain file.

    Of a `quiet` one the result on standard output goes only into the log.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[str, ...]
    result: str
    kind: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    quiet: bool = False

    @property
    def complete(self) -> bool:
        """Whether the result is there, whole."""
        return is_artifact(ROOT / self.result, self.kind) if self.kind else (ROOT / self.result).is_file()

    @property
    def made_from(self) -> str:
        """A hash of the command and of the content of its inputs."""
        facts = [*self.command, *(_content(ROOT / path) for path in self.inputs)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class Walk:
    """Does the steps that are not done, and keeps the record of all of them in the folder `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        file = out / RECORD
        self.record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def do(self, step: Step) -> bool:
        """Run the step unless it is done; says whether it ran."""
        made_from, before = step.made_from, self.record.get(step.name, {})
        same = before.get("made_from") == made_from
        if same and before["ended"] and step.complete:
            say(f"{step.name}: done before, {step.result} is kept")
            return False
        command = step.command
        if before and not same:
            if step.kind in _NOT_REDONE:
                raise UsageError(
                    f"{step.result} was begun from other settings or inputs (a recipe, the sample, --steps); "
                    "give --fresh to begin anew, or another --out"
                )
            if step.kind and (ROOT / step.result).exists():
                command += ("--overwrite",)
        entry = {"seconds": 0.0, "memory": 0} | (before if same else {}) | {"made_from": made_from, "ended": False}
        words = [_free_port() if word == PORT else word for word in command]
        entry["shown"] = shlex.join(words)
        log, began, peak = self.out / "logs" / f"{step.name}.log", time.monotonic(), _Peak()
        self.record[step.name] = entry
        try:
            code, lines = self._run(step, words, log, peak)
        finally:
            entry["seconds"] += time.monotonic() - began
            entry["memory"] = max(entry["memory"], peak.size)
            self._save()
        # The launcher's exit code alone would not do: it is 0 when a signal ended what it had started.
        if code or not step.complete:
            sys.stderr.write("".join(f"  | {line}" for line in lines[-12:]))
            why = f"exit code {code}" if code else f"exit code 0, but {step.result} is not there whole"
            raise McontrieverError(f"step {step.name} failed ({why}); all it said is in {shown(log)}")
        entry["ended"] = True
        self._save()
        return True

    def _run(self, step: Step, words: Sequence[str], log: Path, peak: _Peak) -> tuple[int, list[str]]:
        """The exit code, and what was said."""
        say(f"\n$ {shlex.join(words)}")
        environment = {"TOKENIZERS_PARALLELISM": "false", **step.environment, **os.environ}
        environment |= {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}", "COLUMNS": str(width())}
        log.parent.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        with log.open("a", encoding="utf-8") as full:
            process = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]],
                cwd=ROOT,
                env=environment,
                stdout=full if step.quiet else subprocess.PIPE,
                stderr=subprocess.PIPE if step.quiet else subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # its members can be found, also by the next start if this one is killed
            )
            try:
                self.record["session"] = process.pid
                self._save()
                with peak.watching(process.pid):
                    for line in (process.stderr if step.quiet else process.stdout) or ():
                        full.write(line)
                        full.flush()
                        if not _LAUNCHER.match(line):
                            lines.append(line)
                            _show(line)
                    return process.wait(), lines
            finally:
                end_session(process.pid)
                process.wait()
                _show("")

    def _save(self) -> None:
        write_text(self.out / RECORD, json.dumps(self.record, indent=1) + "\n")


class _Peak:
    """The most memory that a session's processes held together, looked at twice a second.

    What is summed is the proportional set size: a page that two ranks share counts half for each.
    """

    def __init__(self) -> None:
        self.size = 0

    @contextlib.contextmanager
    def watching(self, session: int) -> Iterator[None]:
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.5):
                self.size = max(self.size, sum(map(_memory, _members(session))))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the folder: two quickstarts in it would undo each other's work, and so would what a killed one left running.

    The deepspeed launcher hands no signal on: killed, it leaves its ranks at work.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another quickstart is at work in {shown(out)}; wait for it, or give --out") from error
        session = int(Walk(out).record.get("session", 0))
        # by now the number may be another's session: ours names the folder in its command
        if any(str(shown(out)) in _command(process) for process in _members(session)):
            say("ending what an earlier quickstart left running here")
            end_session(session)
        yield


def end_session(session: int) -> None:
    """Kill what is left of a session that we started."""
    for _ in range(50):
        members = _members(session)
        if not members:
            return
        for process in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)


def say(text: str) -> None:
    """One line of ours."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def width() -> int:
    """Columns of the terminal; 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def shown(path: Path) -> Path:
    """As a user in the repository would type it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


_open_line = False


def _show(line: str) -> None:
    """A line of a command's; on a terminal a progress line is written over the one before it."""
    global _open_line
    progress = sys.stdout.isatty() and "  ETA " in line
    if progress:
        sys.stdout.write(f"\r\x1b[2K{line.rstrip()[: width() - 1]}")
    elif line or _open_line:
        sys.stdout.write("\n" * _open_line + line)
    _open_line = progress
    sys.stdout.flush()


def _content(path: Path) -> str:
    if path.is_dir() and not (path / MANIFEST).is_file():
        return json.dumps([[file.name, sha256(file)] for file in sorted(path.rglob("*")) if file.is_file()])
    file = path / MANIFEST if path.is_dir() else path
    return sha256(file) if file.is_file() else ""


def _members(session: int) -> list[int]:
    """The living processes of a session, by number."""
    found = []
    for path in Path("/proc").glob("[0-9]*") if session else ():
        with contextlib.suppress(OSError):
            # pid (name) state parent group session …, and a name may hold anything
            fields = (path / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(path.name))
    return found


def _command(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    return ""


def _memory(process: int) -> int:
    with contextlib.suppress(OSError):
        match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text(), re.MULTILINE)
        return int(match[1]) * 1024 if match else 0
    return 0


def _free_port() -> str:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])

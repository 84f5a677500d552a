"""`make bench`: is ours faster than the usual way, and by how much, on this machine and now.

Absolute times on a shared machine say little. Both sides therefore run turn about in one process, and what is reported
is their ratio in each round: its median, and its spread, so that a lucky round is seen for what it is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_cases import loader  # type: ignore[import-not-found]  # scripts/ is no package
from bench_common import BenchSettings, Case  # type: ignore[import-not-found]
from bench_encoding import CASES as ENCODING  # type: ignore[import-not-found]
from bench_encoding import MISSING, ON_CPU
from bench_training import CASES as TRAINING  # type: ignore[import-not-found]
from bench_training import ON_GPU, PUBLISHED

from mcontriever import allocator, artifact, settings
from mcontriever.errors import UsageError, run_command

CASES: dict[str, Callable[[BenchSettings, Path], Case]] = {
    "loader-64": functools.partial(loader, size=64),
    "loader-2048": functools.partial(loader, size=2048),
    **ENCODING,
    **TRAINING,
}


@dataclass(frozen=True)
class Result:
    """One case, timed: the median rates of ours and the peer in `unit`, and how many times faster ours is."""

    name: str
    ours: float
    peer: float
    unit: str
    ratio: float
    low: float
    high: float
    machine: str
    commit: str


def measure(
    case: Case, rounds: int, *, machine: str = "", commit: str = "", clock: Callable[[], float] = time.perf_counter
) -> Result:
    """Warm both sides up, then time them turn about: A B A B."""

    def rate(work: Callable[[], float]) -> float:
        began = clock()
        done = work()
        return done / max(clock() - began, 1e-9)

    case.ours(), case.peer()
    pairs = [(rate(case.ours), rate(case.peer)) for _ in range(rounds)]
    ratios = [ours / peer for ours, peer in pairs]
    ours, peer = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    return Result(
        case.name, ours, peer, case.unit, statistics.median(ratios), min(ratios), max(ratios), machine, commit
    )


def table(results: Sequence[Result], peers: Sequence[str]) -> str:
    """The results for a terminal."""
    rows = [("case", "ours", "peer", "unit", "ratio", "spread", "against")]
    for result, peer in zip(results, peers, strict=True):
        spread = f"{result.low:.2f}-{result.high:.2f}"
        rates = f"{result.ours:,.1f}", f"{result.peer:,.1f}"
        rows.append((result.name, *rates, result.unit, f"{result.ratio:.2f}x", spread, peer))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write(
    path: Path | str, results: Sequence[Result], peers: Sequence[str], run: dict[str, Any], complete: bool
) -> None:
    """The results for a program: what was run, whether all of it is here, and a row a case."""
    rows = [dataclasses.asdict(result) for result in results]
    content = {"complete": complete, "run": run, "peers": list(peers), "rows": rows}
    artifact.write_text(path, json.dumps(content, indent=1) + "\n")


def read(path: Path | str, run: dict[str, Any]) -> tuple[list[Result], list[str]]:
    """What an unfinished run left behind: its results and their peers; it must be the same run."""
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        theirs, peers, results = dict(told["run"]), list(told["peers"]), [Result(**row) for row in told["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--resume: {path} holds no results to go on from ({error!r}); leave out --resume") from error
    other = [name for name in run if theirs.get(name) != run[name]]
    if other:
        now = ", ".join(f"{name} {run[name]!r}, not {theirs.get(name)!r}" for name in other)
        raise UsageError(f"--resume: {path} is of another run (now {now}); leave out --resume, or give another --out")
    return results, peers


def main(argv: list[str]) -> list[Result]:
    """Run the cases asked for, write the file after each, print the table."""
    asked = settings.parse(BenchSettings, argv, prog="scripts/bench.py")
    cases = CASES | (ON_GPU if asked.gpu else ON_CPU) | (PUBLISHED if asked.reference else {})
    if asked.case:
        settings.one_of("case", asked.case, cases)
    if MISSING:
        sys.stderr.write(f"without {', '.join(MISSING)} and so without their cases: pip install 'mcontriever[bench]'\n")
    names = [asked.case] if asked.case else list(cases)
    machine, commit = _machine(asked), _commit()
    run = {"machine": machine, "commit": commit} | dataclasses.asdict(asked)
    for name in ("out", "resume"):
        del run[name]
    results, peers = read(asked.out, run) if asked.resume else ([], [])
    torch.set_num_threads(asked.threads)
    rounds = 3 if asked.quick else asked.rounds
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names[len(results) :], len(results) + 1):
            sys.stderr.write(f"{name}: case {number} of {len(names)}, since {time.strftime('%H:%M:%S')} …\n")
            case = cases[name](asked, Path(folder))
            results.append(measure(case, rounds, clock=clock_of(asked), machine=machine, commit=commit))
            peers.append(case.peer_name)
            write(asked.out, results, peers, run, complete=number == len(names))
    sys.stdout.write(f"{machine}, {commit}\n{table(results, peers)}\n")
    return results


def clock_of(asked: BenchSettings) -> Callable[[], float]:
    """Seconds of this process, for on a shared CPU the neighbours' are not ours.

    Those on the wall with a GPU, and with more threads than one: a process has the seconds of all its threads.
    """

    def wall() -> float:
        if asked.gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    return wall if asked.gpu or asked.threads > 1 else time.process_time


def _machine(asked: BenchSettings) -> str:
    if asked.gpu:
        return str(torch.cuda.get_device_name())
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {asked.threads} of {os.cpu_count()} threads, torch {torch.__version__}"


def _commit() -> str:
    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parent
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    return (commit + ("+changes" if git("status", "--porcelain") else "")) if commit else "unknown"


if __name__ == "__main__":
    allocator.restart(anything=True)  # as our commands do; the peers have the good of it too
    sys.exit(run_command(main))

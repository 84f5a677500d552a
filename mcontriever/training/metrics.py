"""What training tells of itself: a line every few steps, in metrics.jsonl, on the terminal and in the sinks.

metrics.jsonl is the truth; everything else is drawn from the same line. Means are over the steps since the line before;
counts and arithmetic are over all ranks, memory and waiting are those of the rank with the most. A number that is not
finite is null. Letters: W ranks, L languages.
"""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import artifact, ranks
from ..errors import DataError
from ..pairs import PairBatch
from ..progress import Bar, note
from .collapse import Collapse
from .sinks import Fanout
from .step import StepResult

NAME = "metrics.jsonl"
EVALUATION = "evaluation.jsonl"
_TOLD = 6  # measures that fit into a line of the terminal; of more only the means are told there
MACHINE = (
    "seconds",
    "seconds_waiting",
    "seconds_to_go",
    "pairs_per_second",
    "tokens_per_second",
    "gemm_share",
    "memory_gib",
    "gpu_memory_gib",
)
"""What depends on the machine and the moment; the rest of a line is the same whenever the same run is run again."""


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of such a file; a last line cut short by a kill is left out."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if line.endswith(b"\n"):
            yield _parsed(line, f"{path}:{number}")


def cut(folder: Path, step: int) -> None:
    """Keep the lines up to `step`: what was logged after the state we resume from will be logged again."""
    for name in (NAME, EVALUATION):
        kept = [line for line in read(folder / name) if line["step"] <= step]
        if kept or name == NAME or (folder / name).exists():
            artifact.write_text(folder / name, "".join(_as_line(line) for line in kept))


def append(path: Path, content: Mapping[str, Any]) -> None:
    """One more line, whole or, after a kill, cut short and known by it."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(_as_line(content))


class Metrics:
    """Collects steps; every `every` of them, and at the last, all ranks put theirs together and rank 0 tells."""

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        steps: int,
        done: int,
        bar: Bar,
        sinks: Fanout,
        work: Callable[[PairBatch], float] | None = None,
        peak: float = 0.0,
        skips: Callable[[], int] = lambda: 0,
        collapse: float = 0.0,
        device: torch.device | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`work` tells what operations a batch needs, `peak` how many this rank can do in a second, and `skips` how
        often an update was left out because fp16 overflowed. `collapse` is the share of `guard.collapse`.
        """
        self._folder, self._every, self._steps, self._done, self._first = folder, every, steps, done, done
        self._bar, self._sinks, self._work, self._peak = bar, sinks, work, peak
        self._skips, self._overflows = skips, skips()
        self._device, self._clock = device or torch.device("cpu"), clock
        self._began = clock()
        self.evaluated_to = ranks.on_main(lambda: max((line["step"] for line in read(folder / EVALUATION)), default=-1))
        """The last step whose measures are written down already."""
        self._collapse = Collapse(collapse, ranks.on_main(lambda: list(read(folder / NAME))))
        self._warned = False
        self._forget()

    def _forget(self) -> None:
        self._results: list[StepResult] = []
        self._languages: Counter[str] = Counter()
        self._names: tuple[str, ...] = ()
        self._fallbacks: int | None = None  # None where no pair can be anything but what the recipe asks
        self._pairs = self._tokens = self._skipped = self._overflowed = 0
        self._fault, self._window = "", self._done
        self._seconds = self._waited = self._operations = 0.0

    def add(
        self,
        step: int,
        result: StepResult,
        batches: Sequence[PairBatch],
        *,
        seconds: float,
        waited: float,
        learning_rate: float,
        skipped: str = "",
    ) -> None:
        """One step, `step` counted from 1, of `seconds` in all and `waited` for data; every rank calls.

        A step without an update, because it overflowed or because of a fault and `skipped`, is left out of the means.
        """
        before, self._overflows = self._overflows, self._skips()
        self._done = step
        self._tokens += result.tokens
        if skipped:
            self._fault = skipped
            self._skipped += 1
        elif self._overflows > before:
            self._overflowed += 1
        else:
            self._results.append(result)
        for batch in batches:
            self._names = batch.languages
            self._languages.update(batch.language_counts())
            self._pairs += len(batch)
            if batch.fallback is not None:
                self._fallbacks = (self._fallbacks or 0) + int(batch.fallback.sum())
            self._operations += self._work(batch) if self._work else 0.0
        self._seconds += seconds
        self._waited += waited
        if step % self._every and step != self._steps:
            self._bar.advance(1, loss=f"{result.loss:.3f}", accuracy=f"{result.accuracy:.2f}")
            return
        line = self._summary(learning_rate)
        ranks.on_main(lambda: append(self._folder / NAME, line))  # a full disk is then every rank's error, not a hang
        self._sinks.log(step, dict(_tags(line)))
        part = {"over": f"{line['steps']} steps"} if line["steps"] < min(self._every, step) else {}
        self._bar.tell(1, **in_words(line), **part)
        if "collapsed" in line and not self._warned and ranks.is_main():
            note(f"Collapsed at step {step:,}? {line['collapsed']}; a lower optim.lr or a longer optim.warmup may help")
        self._warned = "collapsed" in line
        self._forget()

    def evaluated(self, step: int, measures: Mapping[str, float], seconds: float) -> None:
        """Measures of the model after `step` steps; every rank calls."""
        content = {"step": step, "seconds": round(seconds, 3), **{key: round(v, 6) for key, v in measures.items()}}
        ranks.on_main(lambda: append(self._folder / EVALUATION, content))
        self.evaluated_to = step
        if ranks.is_main():
            self._sinks.log(step, {f"evaluation/{name}": value for name, value in measures.items()})
            told = measures if len(measures) <= _TOLD else [name for name in measures if name.endswith(" mean")]
            values = "  ".join(f"{name} {measures[name]:.3f}" for name in told)
            note(f"Evaluation after step {step:,}: {values}")

    def _summary(self, learning_rate: float) -> dict[str, Any]:
        """The line, from every rank's share of it: one message."""
        own = [
            float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024),
            float(torch.cuda.max_memory_allocated(self._device)) if self._device.type == "cuda" else 0.0,
            self._waited,
            self._operations,
            self._peak,
            self._pairs,
            self._fallbacks or 0,
            *(float(self._languages[name]) for name in self._names),
        ]
        shares = ranks.gather(torch.tensor([own], dtype=torch.float64, device=self._device)).cpu()  # (W, 7+L)
        memory, gpu_memory, waited = shares[:, :3].amax(dim=0).tolist()
        operations, peak, pairs, fallbacks, *drawn = shares[:, 3:].sum(dim=0).tolist()
        names = [field.name for field in dataclasses.fields(StepResult) if field.name != "tokens"]
        means = {name: _mean([getattr(result, name) for result in self._results]) for name in names}
        each = (self._clock() - self._began) / (self._done - self._first)
        line = {
            "step": self._done,
            "steps": self._done - self._window,
            **{name: _finite(value) for name, value in means.items()},
            "learning_rate": learning_rate,
            "overflows": self._overflowed,
            "skipped": self._skipped,
            "languages": {name: int(count) for name, count in zip(self._names, drawn, strict=True) if count},
            "seconds": round(self._seconds, 3),
            "seconds_waiting": round(waited, 3),
            "seconds_to_go": round(each * (self._steps - self._done)),
            "pairs_per_second": round(pairs / self._seconds, 1),
            "tokens_per_second": round(self._tokens / self._seconds, 1),
            "memory_gib": round(memory / 2**30, 3),
        }
        if self._fallbacks is not None:
            line["fallback"] = round(fallbacks / pairs, 4)
        if self._fault:
            line["fault"] = self._fault
        if collapsed := self._collapse.of(line):
            line["collapsed"] = collapsed
        if self._device.type == "cuda":
            line["gpu_memory_gib"] = round(gpu_memory / 2**30, 3)
        if self._work and peak:
            line["gemm_share"] = round(operations / self._seconds / peak, 4)
        return line


def in_words(line: Mapping[str, Any]) -> dict[str, str]:
    """The few of a line's numbers that someone who watches a terminal wants."""
    words = {}
    if line["overflows"]:
        words["overflows"] = f"{line['overflows']} (fp16)"
    if line["skipped"]:
        words["skipped"] = f"{line['skipped']} ({line['fault']})"
    if line["overflows"] + line["skipped"] < line["steps"]:  # else no step is left to speak of
        words |= {
            "loss": _short(line["loss"], ".3f"),
            "accuracy": _short(line["accuracy"], ".2f"),
            "std": "/".join(_short(line[name], ".3f") for name in ("query_std", "key_std") if name in line),
            "norm": _short(line["gradient_norm"], ".2f"),
        }
    words |= {
        "lr": _short(line["learning_rate"], ".1e"),
        "pairs/s": _short(line["pairs_per_second"], ",.0f"),
        "tokens/s": _short(line["tokens_per_second"], ",.0f"),
    }
    if "gemm_share" in line:
        words["GEMM"] = _short(line["gemm_share"], ".0%")
    if "fallback" in line:
        words["fallback"] = _short(line["fallback"], ".1%")
    words["memory"] = f"{line.get('gpu_memory_gib', line['memory_gib']):.1f} GiB"
    return words


def _tags(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A line as the sinks take it: numbers alone, grouped by what they tell."""
    for name, value in line.items():
        if name == "languages":
            total = sum(value.values())
            yield from ((f"languages/{language}", count / total) for language, count in value.items())
        elif name not in ("step", "steps", "fault") and value is not None:
            yield f"{'machine' if name in MACHINE else 'training'}/{name}", float(value if name != "collapsed" else 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _short(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
        if isinstance(content, dict) and type(content["step"]) is int:
            return content
    except (ValueError, KeyError):
        pass
    raise DataError(f'{where}: not a line of a log, {{"step": …}}; mend or remove it')


def _as_line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, allow_nan=False) + "\n"

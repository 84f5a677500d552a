"""metrics.jsonl: one line every few steps, means over those steps, for people and programs to plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import artifact
from .step import StepResult

NAME = "metrics.jsonl"


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; a last line cut short by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    for line in lines:
        if line.endswith("\n"):
            yield json.loads(line)


def cut(folder: Path, step: int) -> None:
    """Keep the lines up to `step`: what was logged after the state we resume from will be logged again."""
    kept = [line for line in read(folder / NAME) if line["step"] <= step]
    artifact.write_text(folder / NAME, "".join(_as_line(line) for line in kept))


class MetricsLog:
    """Collects steps and appends a line every `every` of them (and at the end). Rank 0 has one, the others none."""

    def __init__(self, folder: Path, every: int) -> None:
        self.path = folder / NAME
        self._every = every
        self._results: list[StepResult] = []
        self._seconds: list[float] = []
        self._pairs = 0

    def add(
        self, step: int, result: StepResult, *, pairs: int, seconds: float, learning_rate: float, last: bool
    ) -> None:
        """One step, `step` counted from 1."""
        self._results.append(result)
        self._seconds.append(seconds)
        self._pairs += pairs
        if step % self._every and not last:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(_as_line(self._summary(step, learning_rate)))
        self._results, self._seconds, self._pairs = [], [], 0

    def _summary(self, step: int, learning_rate: float) -> dict[str, Any]:
        total = sum(self._seconds)
        tokens = sum(result.tokens for result in self._results)
        names = [field.name for field in dataclasses.fields(StepResult) if field.name != "tokens"]
        means = {name: sum(getattr(result, name) for result in self._results) / len(self._results) for name in names}
        return {
            "step": step,
            **{name: round(value, 6) for name, value in means.items()},
            "learning_rate": learning_rate,
            "seconds": round(total, 3),
            "pairs_per_second": round(self._pairs / total, 1),
            "tokens_per_second": round(tokens / total, 1),
        }


def _as_line(content: dict[str, Any]) -> str:
    return json.dumps(content, allow_nan=False) + "\n"

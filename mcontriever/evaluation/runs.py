"""Run files in TREC's form, so that any other tool can check our measures and ours can measure any other's run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ..artifact import write_text
from ..errors import DataError
from .measures import Run, trec_order


def write_run(path: Path | str, run: Run, tag: str) -> None:
    """`query Q0 passage rank score tag`, one line a result; scores read back to the same float32."""
    _check_word("the tag", tag)
    lines = []
    for query, results in run.items():
        _check_word("query id", query)
        for rank, (passage, score) in enumerate(trec_order(results), start=1):
            _check_word("passage id", passage)
            lines.append(f"{query} Q0 {passage} {rank} {np.float32(score)!s} {tag}\n")
    write_text(path, "".join(lines))


def read_run(path: Path | str) -> dict[str, dict[str, float]]:
    """Read a run; ranks are not believed, scores decide, as in trec_eval."""
    path, run = Path(path), dict[str, dict[str, float]]()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such run file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); expected a TREC run") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if len(fields) != 6:
            raise DataError(f"{path}:{number}: has {len(fields)} fields, expected 6: query Q0 passage rank score tag")
        query, _, passage, _, text, _ = fields
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise DataError(f"{path}:{number}: score {text!r} is not a finite number")
        if passage in run.setdefault(query, {}):
            raise DataError(f"{path}:{number}: passage {passage!r} is listed twice for query {query!r}")
        run[query][passage] = score
    return run


def _check_word(what: str, word: str) -> None:
    if not word or word.split() != [word]:
        raise DataError(f"{what} {word!r} cannot stand in a TREC run: it is empty or holds white space; rename it")

"""Results as one long list of numbers, and the tables people read: systems down, tasks across, a table a measure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..artifact import write_text
from ..errors import DataError, require

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Value:
    """One number: a system's measure on a task, over that many queries and passages."""

    system: str
    task: str
    measure: str
    value: float
    queries: int
    passages: int


@dataclass
class Results:
    """What an evaluation found, and what it was run on (`about`)."""

    about: dict[str, Any]
    values: list[Value] = field(default_factory=list)

    def add(self, value: Value) -> None:
        """Append one number."""
        self.values.append(value)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in `results.json`."""
        return {"about": self.about, "values": [asdict(value) for value in self.values]}

    def save(self, path: Path | str) -> None:
        """Write `results.json`."""
        write_text(path, json.dumps(self.as_dict(), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path | str) -> Results:
        """Read `results.json`."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(content["about"], [Value(**value) for value in content["values"]])
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; expected the results.json of an evaluation") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not the results.json of an evaluation ({error})") from error

    def frame(self, measure: str) -> DataFrame:
        """Systems x tasks of one measure, in the order they were added, then their means.

        Tasks within a language and tasks across two have a mean each: one over both would only say how many of either
        there are.
        """
        library = require("pandas", "eval", "tables")
        rows = [asdict(value) for value in self.values if value.measure == measure]
        if not rows:
            raise DataError(f"no results for {measure}; there are: {', '.join(self.measures)}")
        long = library.DataFrame(rows)
        table = long.pivot(index="system", columns="task", values="value")
        table = table.loc[_unique(long["system"]), _unique(long["task"])]
        within = [task for task in table.columns if _within_language(task)]
        across = [task for task in table.columns if not _within_language(task)]
        for name, tasks in (("mean same", within), ("mean cross", across)):
            if len(tasks) > 1:
                table[name] = table[tasks].mean(axis=1, skipna=False)  # over fewer tasks it would not be comparable
        table.index.name = table.columns.name = None
        return cast("DataFrame", table)

    @property
    def measures(self) -> list[str]:
        """The measures there are, in the order they were added."""
        return _unique(value.measure for value in self.values)

    def terminal(self, width: int = 100) -> str:
        """For the terminal: a line for each task, so that the usual few systems fit its width."""
        tables = []
        for measure in self.measures:
            text = self.frame(measure).T.to_string(float_format=_number, line_width=width, na_rep="-")
            tables.append(f"{measure}\n{text}\n")
        return "\n".join(tables)

    def markdown(self) -> str:
        """For a README."""
        tables = []
        for measure in self.measures:
            frame = self.frame(measure)
            lines = [[measure, *frame.columns]]
            lines += [[name, *map(_number, row)] for name, row in zip(frame.index, frame.to_numpy(), strict=True)]
            lines.insert(1, ["---", *["---:"] * len(frame.columns)])
            tables.append("\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines) + "\n")
        return "\n".join(tables)


def _within_language(task: str) -> bool:
    middle = len(task) // 2
    return task[:middle] == task[middle + 1 :]


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|")


def _unique(items: Iterable[str]) -> list[str]:
    seen: Mapping[str, None] = dict.fromkeys(items)
    return list(seen)

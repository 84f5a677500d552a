"""Where curves go besides metrics.jsonl: TensorBoard and Weights & Biases, each only if asked for.

A sink is a convenience, the run is not: one that cannot be opened stops the run before its first step, when nothing is
lost yet; one that fails later is named once on the terminal and left out from then on, while metrics.jsonl, the truth,
goes on.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..artifact import write_text
from ..errors import DataError, McontrieverError, require
from ..progress import note
from .settings import LoggingSettings


class Sink(Protocol):
    """Takes numbers by name and step."""

    name: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step."""

    def close(self) -> None:
        """Write what is still held back."""


class TensorBoard:
    """Event files under OUTPUT/tensorboard."""

    name = "TensorBoard"

    def __init__(self, output: Path, done: int) -> None:
        require("tensorboard", "log", "logging.tensorboard")
        library = require("torch.utils.tensorboard", "log", "logging.tensorboard")
        # Steps after the state that a run resumes from are told twice: TensorBoard drops the first telling.
        self._writer = library.SummaryWriter(str(output / "tensorboard"), purge_step=done + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()


class WandB:
    """One Weights & Biases run for the folder, however often training is started again: its id is kept there."""

    name = "Weights & Biases"
    ID = "wandb-id.txt"

    def __init__(self, output: Path, project: str, config: Mapping[str, Any]) -> None:
        library = require("wandb", "wandb", "logging.wandb")
        file = output / self.ID
        if file.exists():
            identifier = file.read_text(encoding="utf-8").strip()
            if not re.fullmatch(r"[a-z0-9]{1,64}", identifier):
                raise DataError(f"{file}:1: {identifier[:40]!r} is no id of a run; remove the file to begin a new one")
        else:
            identifier = secrets.token_hex(4)
            write_text(file, f"{identifier}\n")
        self._run = library.init(
            project=project,
            name=output.resolve().name,
            id=identifier,
            resume="allow",
            dir=str(output),
            config=dict(config),
            settings=library.Settings(silent=True, console="off"),
        )
        # Its own count of steps never goes back, as a resumed run does, and drops what is logged below it. With an
        # axis of ours the repeated steps lie on top of each other, for they are the same numbers.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()


def open_sinks(chosen: LoggingSettings, output: Path, done: int, config: Mapping[str, Any]) -> list[Sink]:
    """The sinks asked for, of a run that goes on after `done` steps."""
    opened: list[Sink] = []
    if chosen.tensorboard:
        with _told(TensorBoard.name, "make room at that place, or leave out logging.tensorboard"):
            opened.append(TensorBoard(output, done))
    if chosen.wandb:
        with _told(WandB.name, "run `wandb login`, set WANDB_MODE=offline, or leave out logging.wandb"):
            opened.append(WandB(output, chosen.wandb, config))
    return opened


@contextlib.contextmanager
def _told(name: str, way_out: str) -> Iterator[None]:
    """Whatever a library raises while it opens a sink, as one line."""
    try:
        yield
    except McontrieverError:
        raise
    except Exception as error:
        raise McontrieverError(f"{name} cannot be opened: {_in_words(error)}; {way_out}") from error


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Fanout:
    """All sinks as one that never fails: a broken one is named once and left out from then on."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._each(lambda sink: sink.log(step, values))

    def close(self) -> None:
        """See `Sink`."""
        self._each(lambda sink: sink.close())
        self._sinks.clear()

    def _each(self, function: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                function(sink)
            except Exception as error:
                self._sinks.remove(sink)
                note(f"{sink.name}: {_in_words(error)}; nothing more is sent there, metrics.jsonl goes on")

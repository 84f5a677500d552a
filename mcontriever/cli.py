"""The `mcontriever` command: a table of verbs, each a settings class and a function of one of the rooms.

Nothing heavy is imported here: `mcontriever --help` must answer at once, and a verb imports only its own room.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from . import allocator
from .errors import ArtifactError, UsageError, did_you_mean, run_command
from .settings import parse
from .version import __version__


class Verb(NamedTuple):
    """Where a verb lives: a module with the settings class and the function, and what may be given by position."""

    module: str
    settings: str
    function: str
    positionals: tuple[str, ...]
    help: str


VERBS = {
    "prepare": Verb("corpus.prepare", "PrepareSettings", "prepare", ("corpus", "out"), "raw text to token shards"),
    "embed": Verb("retrieval.embed", "EmbedSettings", "embed", ("checkpoint", "corpus", "out"), "passages to vectors"),
    "index": Verb("retrieval.index", "IndexSettings", "build_index", ("vectors", "out"), "vectors to a search index"),
    "search": Verb("retrieval.terminal", "SearchSettings", "search_command", ("index", "query"), "answer a question"),
    "serve": Verb("serving.server", "ServeSettings", "serve", ("index",), "answer questions over HTTP"),
    "plot": Verb("training.plot", "PlotSettings", "plot", ("runs",), "the curves of training runs as a picture"),
    "export": Verb("training.export", "ExportSettings", "export", ("run", "out"), "an encoder for other software"),
    "push": Verb("encoder.push", "PushSettings", "push", ("folder", "name"), "an exported folder to the hub"),
    "supervise": Verb("training.supervise", "SuperviseSettings", "supervise", (), "restart a training job that died"),
    "adopt": Verb(
        "encoder.adopt", "AdoptSettings", "adopt", ("checkpoint", "out"), "another's checkpoint to one of ours"
    ),
    "doctor": Verb("doctor", "DoctorSettings", "doctor", (), "say what this machine has, and what mends the rest"),
    "inspect": Verb("cli", "InspectSettings", "inspect", ("path",), "say what a folder or a checkpoint is and holds"),
}
HEAVY = {"prepare", "embed", "index", "search", "serve"}
"""Verbs that compute long enough for the allocator to matter."""
_LIST = 90  # characters of a list that are shown
_ELSEWHERE = """\
Training:    deepspeed mcontriever/train.py --recipe NAME, or python -m mcontriever.train --recipe NAME
Evaluation:  python eval/folder.py --data FOLDER --checkpoint NAME=PATH --out DIR
Options:     --help, --version, --debug (show an error's traceback)
"""


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """Verify a folder written by mcontriever and say what it is; of anybody's checkpoint, how it must be used."""

    path: str
    """a checkpoint, token shards, vectors or an index; or another's checkpoint, a folder or a name on the hub"""


def inspect(settings: InspectSettings) -> None:
    """Verify and describe; for a checkpoint, its contract in words."""
    from .artifact import MANIFEST, open_artifact

    path, kind = Path(settings.path), "checkpoint"
    if not (path / MANIFEST).is_file() and _of_others(path):
        from .encoder.adopt import describe

        sys.stdout.write(describe(settings.path) + "\n")
        return
    if (path / MANIFEST).is_file():
        try:
            kind = str(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["artifact"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path / MANIFEST}: damaged ({error}); write the folder again") from error
    elif within := [part for part in (path / "model", *sorted(path.glob("state-*"))) if (part / MANIFEST).is_file()]:
        whole = ", ".join(map(str, within))
        raise ArtifactError(f"{path}: the folder of a training run; inspect what lies in it: {whole}")
    found = open_artifact(path, kind)
    size = sum(facts["bytes"] for facts in found.files.values())
    lines = [f"{settings.path}: {found.kind}, complete, {len(found.files)} files, {size / 1e6:,.1f} MB"]
    if "contract.json" in found.files:
        from .encoder.checkpoint import check
        from .encoder.contract import Contract

        # what loading would complain of, inspecting does too; an ONNX graph is none of ours to load
        lines.append((check(path) if found.kind == "checkpoint" else Contract.read(path)).in_words())
    meta = dict(found.meta)
    if found.kind == "token shards" and "report" in meta:
        from .corpus.report import read_back

        lines += read_back(meta)
        for name in ("report", "bad_lines", "languages"):
            meta.pop(name, None)
    lines += [f"{name + ':':<22} {value}" for name, value in _flat(meta)]
    sys.stdout.write("\n".join(lines) + "\n")


def _of_others(path: Path) -> bool:
    """A checkpoint's folder or file that others wrote, or a name on the hub."""
    if path.is_dir():
        return any((path / name).is_file() for name in ("config.json", "modules.json", "checkpoint.pth"))
    return path.is_file() or (not path.is_absolute() and path.parts[:1] != ("..",) and len(path.parts) <= 2)


def _flat(meta: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in meta.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} ")
        elif isinstance(value, list):
            yield f"{prefix}{name}", shorten(", ".join(map(str, value)) or "none", _LIST, placeholder=" …")
        else:
            yield f"{prefix}{name}", value


def main(argv: Sequence[str]) -> None:
    """Run one verb."""
    # the deepspeed launcher adds --local_rank=N; the environment says the same
    words = [word for word in argv if not word.startswith(("--local_rank=", "--local-rank="))]
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        if not words:
            raise UsageError("no verb was given; see the list above")
        return
    name, *rest = words
    if "--" in rest:  # what follows is another command's
        cut = rest.index("--")
        rest = [*rest[:cut], "--command", json.dumps(rest[cut + 1 :])]
    if name in ("--version", "-V"):
        sys.stdout.write(f"mcontriever {__version__}\n")
        return
    if name not in VERBS:
        raise UsageError(f"unknown verb {name!r}; {did_you_mean(name, VERBS)}")
    verb = VERBS[name]
    module = importlib.import_module(f"mcontriever.{verb.module}")
    settings = parse(getattr(module, verb.settings), rest, prog=f"mcontriever {name}", positionals=verb.positionals)
    getattr(module, verb.function)(settings)


def entry() -> None:
    """What the installed `mcontriever` script calls."""
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")  # launchers put options before it
    if verb in HEAVY and {"-h", "--help"}.isdisjoint(sys.argv):
        allocator.restart()
    raise SystemExit(run_command(main))


def _overview() -> str:
    lines = ["usage: mcontriever VERB ... [--help]", ""]
    for name, verb in VERBS.items():
        places = " ".join(place.upper() for place in verb.positionals)
        lines.append(f"  {name:<9} {places:<22}  {verb.help}")
    return "\n".join([*lines, "", _ELSEWHERE])

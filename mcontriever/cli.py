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

from .errors import ArtifactError, UsageError, did_you_mean, run_command
from .settings import in_range, one_of, parse
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
    "export": Verb("training.export", "ExportSettings", "export", ("run", "out"), "a run's encoder to a checkpoint"),
    "supervise": Verb("training.supervise", "SuperviseSettings", "supervise", (), "restart a training job that died"),
    "adopt": Verb("cli", "AdoptSettings", "adopt", ("checkpoint", "out"), "another's checkpoint to one of ours"),
    "inspect": Verb("cli", "InspectSettings", "inspect", ("path",), "say what a folder we wrote is and holds"),
}
_LIST = 90  # characters of a list that are shown
_ELSEWHERE = """\
Training:    deepspeed mcontriever/train.py --recipe NAME, or python -m mcontriever.train --recipe NAME
Evaluation:  python eval/folder.py --data FOLDER --checkpoint NAME=PATH --out DIR
Options:     --help, --version, --debug (show an error's traceback)
"""


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """Verify a folder written by mcontriever and say what it is."""

    path: str
    """a checkpoint, token shards, vectors or an index"""


def inspect(settings: InspectSettings) -> None:
    """Verify and describe; for a checkpoint, its contract in words."""
    from .artifact import MANIFEST, open_artifact

    path, kind = Path(settings.path), "checkpoint"
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
        from .encoder.contract import Contract

        lines.append(Contract.read(path).in_words())
    meta = dict(found.meta)
    if found.kind == "token shards" and "report" in meta:
        from .corpus.report import read_back

        lines += read_back(meta)
        for name in ("report", "bad_lines", "languages"):
            meta.pop(name, None)
    lines += [f"{name + ':':<22} {value}" for name, value in _flat(meta)]
    sys.stdout.write("\n".join(lines) + "\n")


@dataclass(frozen=True, kw_only=True)
class AdoptSettings:
    """Write a checkpoint of others anew, with a contract that says how it must be used."""

    checkpoint: str
    """folder in Hugging Face's layout, or the name of a model on the hub"""
    out: str
    """folder to write"""
    pooling: str = ""
    """mean or cls; needed where neither its files nor our registry say it"""
    similarity: str = ""
    """dot or cosine; needed where neither its files nor our registry say it"""
    query_prefix: str = ""
    """put before every query"""
    passage_prefix: str = ""
    """put before every passage"""
    query_max_length: int = 0
    """tokens of a query, special tokens included; 0: what its files allow"""
    passage_max_length: int = 0
    """tokens of a passage, special tokens included; 0: what its files allow"""
    overwrite: bool = False
    """replace OUT if it is there"""

    def __post_init__(self) -> None:
        for name, allowed in (("pooling", ("mean", "cls")), ("similarity", ("dot", "cosine"))):
            if getattr(self, name):
                one_of(name, getattr(self, name), allowed)
        for name in ("query_max_length", "passage_max_length"):
            in_range(name, getattr(self, name), 0, 1_000_000)


def adopt(settings: AdoptSettings) -> Path:
    """Load by the rules given, and save as one of ours, which needs none any more."""
    from .encoder import load, save
    from .encoder.contract import Rules

    given = {name: getattr(settings, name) for name in Rules.__annotations__ if getattr(settings, name, None)}
    encoder = load(settings.checkpoint, device="cpu", **given)
    save(encoder, settings.out, meta={"adopted_from": settings.checkpoint}, overwrite=settings.overwrite)
    sys.stdout.write(f"{settings.out}: written\n{encoder.contract.in_words()}\n")
    return Path(settings.out)


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
    words = list(argv)
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
    raise SystemExit(run_command(main))


def _overview() -> str:
    lines = ["usage: mcontriever VERB ... [--help]", ""]
    for name, verb in VERBS.items():
        places = " ".join(place.upper() for place in verb.positionals)
        lines.append(f"  {name:<9} {places:<22}  {verb.help}")
    return "\n".join([*lines, "", _ELSEWHERE])

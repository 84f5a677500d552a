"""The order of the rooms, held in one table and checked against every import in the package."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "mcontriever"
LONGEST_FILE = 350

# A room imports from the rows above its own, never from its own row or from one below.
ORDER = [
    "errors languages version help_text progress allocator",
    "artifact settings ranks",
    "workers",
    "corpus",
    "pairs",
    "encoder",
    "objectives",
    "retrieval",
    "evaluation",
    "negatives training",
    "serving",
    "train cli doctor",
    "__main__",
]
ROW = {room: row for row, rooms in enumerate(ORDER) for room in rooms.split()}
SOLE_IMPORTER = {"deepspeed": "training/zero_engine.py", "faiss": "retrieval/index.py", "torch.distributed": "ranks.py"}

FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})


def imported(source: str, here: str) -> Iterator[str]:
    """Every dotted name that the module at `here` imports: at its top, inside functions, or by a string."""
    package = ["mcontriever", *Path(here).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield "torch.distributed"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"require", "import_module"}:
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield "mcontriever" + name.value if name.value.startswith(".") else name.value


def complaints(source: str, here: str) -> list[str]:
    """What the table has against the module at `here` (relative to the package)."""
    room = Path(here).parts[0].removesuffix(".py")
    if room == "__init__":  # the package itself only hands out names of its rooms, when they are asked for
        return []
    if room not in ROW:
        return [f"{room} has no row in ORDER: decide what it may import"]
    found = []
    for name in imported(source, here):
        for library, home in SOLE_IMPORTER.items():
            if f"{name}.".startswith(f"{library}.") and here != home:
                found.append(f"only {home} imports {library}")
        target = name.split(".")[1] if name.startswith("mcontriever.") else room
        if target != room and ROW.get(target, -1) >= ROW[room]:
            found.append(f"{room} must not import {target}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_down_the_table(path: Path) -> None:
    assert complaints(path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()) == []


@pytest.mark.parametrize(
    ("here", "source", "complaint"),
    [
        ("corpus/shards.py", "from ..encoder import load", "corpus must not import encoder"),
        ("corpus/shards.py", "def f():\n    from mcontriever.cli import entry", "corpus must not import cli"),
        ("corpus/__init__.py", "from .. import pairs", "corpus must not import pairs"),
        ("negatives/mine.py", "import mcontriever.training.loop", "negatives must not import training"),
        ("training/loop.py", "import deepspeed.comm", "only training/zero_engine.py imports deepspeed"),
        ("serving/app.py", "faiss = require('faiss', 'cpu', 'search')", "only retrieval/index.py imports faiss"),
        ("training/loop.py", "import torch\ntorch.distributed.barrier()", "only ranks.py imports torch.distributed"),
        ("training/loop.py", "from torch import distributed", "only ranks.py imports torch.distributed"),
        ("unheard_of.py", "", "unheard_of has no row in ORDER: decide what it may import"),
    ],
)
def test_a_breach_of_the_table_is_seen(here: str, source: str, complaint: str) -> None:
    assert complaints(source, here) == [complaint]


def test_what_the_table_allows_is_left_alone() -> None:
    assert complaints("import torch, faiss_like\nfrom ..errors import DataError\nfrom . import x", "corpus/a.py") == []
    assert complaints("import faiss\nfrom ..encoder.model import Encoder", "retrieval/index.py") == []


@pytest.mark.parametrize("folder", ["mcontriever", "eval", "scripts"])
def test_no_name_shadows_an_installed_one(folder: str) -> None:
    # A launcher, or `python FOLDER/file.py`, puts the folder first on sys.path: a queue.py there would be imported
    # in place of the standard library's.
    taken = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}
    here = REPOSITORY / folder
    names = {path.stem for path in here.glob("*.py")} | {path.parent.name for path in here.glob("*/*.py")}
    assert sorted((names - {"__init__", "__main__"}) & taken) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_every_package_says_in_one_sentence_why_it_is_there(folder: Path) -> None:
    init = folder / "__init__.py"
    assert init.exists(), "without an __init__.py the folder is left out of the wheel"
    text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
    if folder == PACKAGE:
        text = text.partition("\n\n")[0]  # the package's own goes on with an example
    assert len(re.findall(r"[.!?](?=\s|$)", text)) == 1, f"not one sentence: {text!r}"
    assert text.endswith(".")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE

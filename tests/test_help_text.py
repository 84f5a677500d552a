"""Help: every option of every command is shown, in the words under its field, and in one style."""

import importlib
import json
import re
import tomllib
from dataclasses import dataclass, field

import pytest

from mcontriever import help_text
from mcontriever.cli import VERBS
from mcontriever.settings import build, dump, parse
from mcontriever.training import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How weights move."""

    lr: float = 1e-4
    """learning rate"""


@dataclass(frozen=True, kw_only=True)
class Root:
    """A whole recipe."""

    out: str
    """folder to write"""
    optim: Learning = field(default_factory=Learning)
    languages: tuple[str, ...] = ()
    """languages used"""


def test_help_shows_every_field_with_its_words(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Root, ["--help"], prog="mcontriever thing", positionals=["out"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: mcontriever thing OUT [--key value ...]\n")
    assert text.index("--out OUT") < text.index("--languages A,B,...") < text.index("--optim.lr X")
    assert "(required)" in text
    assert "(default 0.0001)" in text
    assert "recipe" not in text.replace("A whole recipe:", "")
    for words in ("--optim.lr", "learning rate", "--languages", "languages used", "folder to write"):
        assert words in text


def flat(table, prefix=""):
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("command", ["train", *VERBS])
def test_help_shows_all_options_and_only_those_that_are_taken(command, capsys):
    if command == "train":
        cls, positionals, values = TrainSettings, (), {"output": "x", "unlabelled.shards": "y"}
    else:
        verb = VERBS[command]
        module = importlib.import_module(f"mcontriever.{verb.module}")
        cls, positionals = getattr(module, verb.settings), verb.positionals
        values = dict.fromkeys(positionals, "x")
        if command == "supervise":  # the command's words follow two dashes, which are no position
            values["command"] = "x"
        if command == "push":  # its name is a hub's, checked when the settings are made
            values["name"] = "owner/model"
    with pytest.raises(SystemExit):
        parse(cls, ["--help"], prog="p", positionals=positionals, recipes=command == "train")
    text = capsys.readouterr().out
    shown = re.findall(r"^  (?:-h, )?--([\w.]+)", text, re.MULTILINE)
    general = ["help", "debug"] + ["recipe"] * (command == "train")
    defaults = dict(flat(tomllib.loads(dump(build(cls, None, values)))))
    assert sorted(shown) == sorted([*general, *defaults])
    assert set(re.findall(r"--([\w.]+)", text)) - set(shown) == {"key"}, "options named in passing"
    words = []
    for key, value in defaults.items():
        if isinstance(value, list | dict):
            value = ",".join(value) if isinstance(value, list) else json.dumps(value)
        value = str(value).lower() if value in (True, False) else value
        words += [f"--{key}", str(value)]
    assert parse(cls, words, prog="p") == build(cls, None, values)


@pytest.mark.parametrize("command", ["train", *VERBS])
def test_help_is_written_in_one_style(command):
    cls = TrainSettings
    if command != "train":
        cls = getattr(importlib.import_module(f"mcontriever.{VERBS[command].module}"), VERBS[command].settings)
    for key, _, _, words in help_text.described(cls):
        assert words, f"{key} has no words under it"
        assert not words.endswith(".") or words.endswith("..."), f"{key}: a fragment, without a full stop"
        first = words.split()[0].rstrip(",:;")
        assert not first[0].isupper() or first.isupper(), f"{key}: begins with a capital"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_given_whatever_else_is_asked(flag, capsys):
    with pytest.raises(SystemExit):
        parse(Root, ["--nonsense", flag], prog="p")
    assert capsys.readouterr().out.startswith("usage: p")

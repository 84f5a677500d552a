"""What `--help` says of a command, written from its settings' own docstrings.

By hand, for jsonargparse's own help also lists options that we do not take.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import typing
from collections.abc import Iterator, Sequence
from typing import Any


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether the field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def show_help(cls: type, prog: str, positionals: Sequence[str], recipes: bool) -> None:
    """Write the help of the command `prog`, whose settings are a `cls`, to standard output."""
    required = {field.name for field in dataclasses.fields(cls) if is_required(field)}
    places = " ".join(name.upper() if name in required else f"[{name.upper()}]" for name in positionals)
    usage = " ".join(filter(None, [prog, places, "[--recipe RECIPE]" if recipes else "", "[--key value ...]"]))
    wide = functools.partial(argparse.HelpFormatter, max_help_position=36)
    parser = argparse.ArgumentParser(usage=usage, add_help=False, formatter_class=wide)
    whole = parser.add_argument_group(_first_sentence(cls))
    if recipes:
        whole.add_argument(
            "--recipe", help="TOML file of settings, or the name of a shipped one; read before the options"
        )
    groups, order = {"": whole}, {name: place for place, name in enumerate(positionals)}
    for key, hint, default, words in sorted(described(cls), key=lambda row: order.get(row[0], len(order))):
        above = key.rpartition(".")[0]
        if above not in groups:
            holder = typing.get_type_hints(cls)[above]
            groups[above] = parser.add_argument_group(_first_sentence(holder))
        said = "required" if default is dataclasses.MISSING else _default_in_words(default)
        text = f"{words} ({said})" if said else words
        groups[above].add_argument(f"--{key}", metavar=_metavar(key, hint), help=text.replace("%", "%%"))
    general = parser.add_argument_group("general")
    general.add_argument("-h", "--help", help="show this and stop", action="store_true")
    general.add_argument("--debug", help="show the traceback of an error", action="store_true")
    parser.epilog = f"{places} may be given by position." if positionals else None
    sys.stdout.write(parser.format_help())


def _first_sentence(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split()).partition(". ")[0].rstrip(".")


def described(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Every leaf: its dotted key, type, default (MISSING: required) and the words under it."""
    import docstring_parser

    hints = typing.get_type_hints(cls)
    words = {entry.arg_name: entry.description or "" for entry in docstring_parser.parse_from_object(cls).params}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from described(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            yield f"{prefix}{field.name}", hint, default, " ".join(words.get(field.name, "").split())


def _metavar(key: str, hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (tuple, list):
        return "A,B,..."
    return {int: "N", float: "X", bool: "[true|false]"}.get(hint) or key.rpartition(".")[2].upper()


def _default_in_words(default: Any) -> str:
    default = ",".join(map(str, default)) if isinstance(default, tuple | list) else default
    default = str(default).lower() if isinstance(default, bool) else default
    return "" if default in ("", {}) else f"default {default}"

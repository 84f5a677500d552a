"""How settings are read: a frozen dataclass's defaults, then a recipe file, then dotted overrides.

Each room owns its dataclasses; this module only reads them. jsonargparse does the typing, the defaults and the help;
what is ours is to say, in one line and before any work starts, which file and which key is wrong and what was meant.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .errors import SettingsError, UsageError, did_you_mean
from .help_text import is_required, show_help

T = TypeVar("T")

RECIPES = Path(__file__).parent / "recipes"
_OVERRIDES = "command line"


def parse(
    cls: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    positionals: Sequence[str] = (),
    recipes: bool = False,
) -> T:
    """Build `cls` from a command line.

    `--key value`, `--key=value` and, for booleans, a bare `--key` set a field; dots reach into nested dataclasses; the
    fields named in `positionals` may be given by position, the optional among them all or none. With `recipes`,
    `--recipe FILE-or-NAME` is read first.
    """
    if any(argument in ("-h", "--help") for argument in argv):
        show_help(cls, prog, positionals, recipes)
        raise SystemExit(0)
    recipe, overrides = None, {}
    for key, value in _split(cls, argv, prog, positionals, recipes):
        if key == "recipe" and recipes:
            recipe = find_recipe(value)
        else:
            overrides[key] = value
    return build(cls, recipe, overrides, positionals=positionals)


def build(
    cls: type[T],
    recipe: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    *,
    positionals: Sequence[str] = (),
) -> T:
    """Defaults, then the TOML file `recipe`, then dotted `overrides`; raises `SettingsError` and does nothing else."""
    overrides = dict(overrides or {})
    known = dict(_leaves(cls))
    for key in overrides:
        if _hint(known, key) is None:
            raise SettingsError(f"{_OVERRIDES}: unknown setting {key!r}; {did_you_mean(key, known)}")
    arguments = [f"--recipe={recipe}"] if recipe else []
    if recipe:
        _check_recipe_keys(cls, recipe)
    arguments += [f"--{key}={_as_toml(_hint(known, key), value)}" for key, value in overrides.items()]
    missing = [field.name for field in dataclasses.fields(cls) if is_required(field)]  # type: ignore[arg-type]
    missing = [name for name in missing if name not in overrides and not _in_recipe(recipe, name)]
    if missing:
        what = ", ".join(name.upper() if name in positionals else f"--{name}" for name in missing)
        raise SettingsError(f"{recipe or _OVERRIDES}: missing {what}; see --help")
    parser = _parser(cls)
    try:
        tree = parser.instantiate(parser.parse_args(arguments))
        return cls(**{field.name: tree[field.name] for field in dataclasses.fields(cls)})  # type: ignore[arg-type]
    except SettingsError as error:
        raise SettingsError(f"{_origin(str(error), recipe, overrides)}: {error}") from error
    except Exception as error:
        raise _explain(error, recipe, overrides, known) from error


def dump(settings: object) -> str:
    """The resolved tree as TOML: reading it back gives equal settings."""
    import toml

    return str(toml.dumps(_plain(settings)))


def find_recipe(name: str) -> Path:
    """A path to a recipe: a file as given, or one of the recipes that come with the package by name."""
    for candidate in (Path(name), RECIPES / f"{name}.toml"):
        if candidate.is_file():
            return candidate
    shipped = sorted(path.stem for path in RECIPES.glob("*.toml"))
    raise UsageError(f"--recipe {name}: no such file, nor a recipe of that name; {did_you_mean(name, shipped)}")


def in_range(
    name: str, value: float, low: float, high: float, *, low_open: bool = False, high_open: bool = False
) -> None:
    """For `__post_init__`: complain unless `value` lies between the bounds (closed unless said to be open).

    `name` is what a user would type, with its dots: whether a recipe or the command line is to blame is read from it.
    """
    above = value > low if low_open else value >= low
    below = value < high if high_open else value <= high
    if not (above and below):
        interval = f"{'(' if low_open else '['}{_exactly(low)}, {_exactly(high)}{')' if high_open else ']'}"
        raise SettingsError(f"{name} must lie in {interval}, got {value!r}")


def _exactly(bound: float) -> str:
    return f"{bound:.0f}" if float(bound).is_integer() else repr(bound)


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """For `__post_init__`: complain unless `value` is one of the allowed words."""
    words = list(allowed)
    if value not in words:
        raise SettingsError(f"{name} must be one of {', '.join(words)}, got {value!r}; {did_you_mean(value, words)}")


def only_for(given: object, section: str, names: Iterable[str], choice: str, *values: str) -> None:
    """For `__post_init__`: complain of fields that are set though only a `choice` among `values` uses them."""
    made = getattr(given, choice)
    for name in names if made not in values else ():
        default = getattr(type(given), name)
        if getattr(given, name) != default:
            raise SettingsError(
                f"{section}.{name} is only for {section}.{choice} = {' or '.join(map(repr, values))}, "
                f"got {choice} = {made!r}; leave it out or set it to {default!r}"
            )


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _leaves(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hint


def _hint(known: Mapping[str, Any], key: str) -> Any:
    """The type of a setting, or of one entry of a table of names (`weights.en`); None for what there is not."""
    table = known.get(key.rpartition(".")[0])
    return typing.get_args(table)[1] if typing.get_origin(table) is dict else known.get(key)


def _split(
    cls: type, argv: Sequence[str], prog: str, positionals: Sequence[str], recipes: bool
) -> Iterator[tuple[str, str]]:
    """Command-line words to (key, value) pairs. Every option takes a value; a boolean may leave it out."""
    known = dict(_leaves(cls)) | ({"recipe": str} if recipes else {})
    words, placed, given = list(argv), [], set()
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            placed.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        above, dot, last = key.rpartition(".")
        above = above.replace("-", "_")
        in_table = typing.get_origin(known.get(above)) is dict  # whose names are the user's own: zh-yue
        key = above + dot + (last if in_table else last.replace("-", "_"))
        if _hint(known, key) is None:
            raise SettingsError(f"{_OVERRIDES}: unknown option --{key}; {did_you_mean(key, known)}")
        if not equals:
            is_flag = _hint(known, key) is bool
            if is_flag and (not words or words[0] not in ("true", "false")):
                value = "true"
            elif not words:
                raise UsageError(f"{prog}: option --{key} needs a value")
            else:
                value = words.pop(0)
        given.add(key)
        yield key, value
    places = [name for name in positionals if name not in given]
    required = {field.name for field in dataclasses.fields(cls) if is_required(field)}
    if len(placed) == sum(name in required for name in places):
        places = [name for name in places if name in required]  # `prepare OUT --dataset NAME`: no CORPUS was meant
    if len(placed) >= len(places) > 0 and typing.get_origin(known[places[-1]]) in (tuple, list):
        end = len(places) - 1  # `plot RUN RUN`: the last place takes all there are, commas in them and all
        placed[end:] = [json.dumps(placed[end:], ensure_ascii=False)]
    for number, word in enumerate(placed):
        if number == len(places):
            raise UsageError(f"{prog}: unexpected argument {word!r}; options look like --key value, see --help")
        yield places[number], word


def _as_toml(hint: Any, value: str) -> str:
    """`en,sw` for strings becomes `["en", "sw"]`, TOML's `{en = 1.0}` JSON's; everything else is taken as it stands."""
    if typing.get_origin(hint) is dict:
        try:
            return json.dumps(tomllib.loads(f"table = {value}")["table"], default=str)
        except tomllib.TOMLDecodeError:
            return value
    if typing.get_origin(hint) in (tuple, list) and not value.startswith("["):
        return "[" + ", ".join(f'"{item.strip()}"' for item in value.split(",") if item.strip()) + "]"
    return value


def _in_recipe(recipe: Path | None, name: str) -> bool:
    return recipe is not None and name in _read_toml(recipe)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error


def _check_recipe_keys(cls: type, path: Path) -> None:
    def walk(cls: type, table: Mapping[str, Any], at: str) -> None:
        hints = typing.get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        for key, value in table.items():
            if key not in names:
                near = did_you_mean(key, names)
                raise SettingsError(f"{path}: unknown setting {at}{key}; {near}")
            if dataclasses.is_dataclass(hints[key]):
                if not isinstance(value, dict):
                    raise SettingsError(f"{path}: {at}{key} must be a table [{at}{key}], got {value!r}")
                walk(typing.cast(type, hints[key]), value, f"{at}{key}.")

    walk(cls, _read_toml(path), "")


def _parser(cls: type) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(parser_mode="toml", exit_on_error=False)
    parser.add_argument("--recipe", action="config")
    parser.add_class_arguments(cls)
    return parser


def _origin(complaint: str, recipe: Path | None, overrides: Mapping[str, str]) -> Path | str:
    """Who set what a dataclass complains of: its first words, its dotted names and its options are looked at."""
    named = re.findall(r"^[\w.]+|--\w+|\b[a-z]\w*(?:\.[a-z]\w*)+", complaint)
    names = [f"{name.removeprefix('--')}." for name in named]
    given = any(name.startswith(f"{key}.") or key.startswith(name) for name in names for key in overrides)
    return _OVERRIDES if given else recipe or _OVERRIDES


def _explain(
    error: Exception, recipe: Path | None, overrides: Mapping[str, str], known: Mapping[str, Any]
) -> Exception:
    text = " ".join(str(error).split())
    for key, hint in sorted(known.items(), key=lambda item: -len(item[0])):
        if f'"{key}"' in text or f"'{key}'" in text:
            given = text.partition("Got value: ")[2] or repr(overrides.get(key, "?"))
            entries = [value for name, value in overrides.items() if name.startswith(f"{key}.")]
            where = _OVERRIDES if key in overrides or given in entries else recipe or _OVERRIDES
            return SettingsError(f"{where}: {key} must be {_in_words(hint)}, got {given}")
    if isinstance(error, ValueError | TypeError) or type(error).__name__ == "ArgumentError":
        return SettingsError(f"{recipe or _OVERRIDES}: {text}")
    return error


def _in_words(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is dict:
        return "a table such as {en = 2.0, sw = 1.0}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return plain.get(hint) or str(hint).replace("typing.", "")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value

"""Settings: where a value comes from, and that every mistake is one line naming file, key, expectation, nearest key."""

import re
from dataclasses import dataclass, field
from typing import Literal

import pytest

from mcontriever import help_text, settings
from mcontriever.errors import SettingsError, UsageError
from mcontriever.settings import build, dump, in_range, one_of, parse
from mcontriever.training import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How weights move."""

    lr: float = 1e-4
    """learning rate"""
    schedule: str = "linear"
    """how it falls"""
    warmup: int = 10
    """steps of rising"""

    def __post_init__(self):
        in_range("lr", self.lr, 0, 1, low_open=True)
        one_of("schedule", self.schedule, ["linear", "constant"])


@dataclass(frozen=True, kw_only=True)
class Root:
    """A whole recipe."""

    out: str
    """folder to write"""
    optim: Optim = field(default_factory=Optim)
    languages: tuple[str, ...] = ()
    """languages used"""
    loss: Literal["moco", "inbatch"] = "moco"
    """objective"""
    bf16: bool = False
    """half the bytes"""
    seed: int = 0
    """random seed"""


def recipe(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(call):
    with pytest.raises(SettingsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_overrides_win_over_the_recipe_and_it_over_defaults(tmp_path):
    path = recipe(tmp_path, 'out = "a"\nseed = 3\nlanguages = ["sw", "en"]\n[optim]\nlr = 0.5\nwarmup = 7\n')
    made = build(Root, path, {"optim.lr": "1e-5", "loss": "inbatch"})
    expected = Optim(lr=1e-5, warmup=7)
    assert made == Root(out="a", seed=3, languages=("sw", "en"), optim=expected, loss="inbatch")


def test_the_command_line_takes_every_form(tmp_path):
    path = recipe(tmp_path, "seed = 3\n")
    argv = ["place", "--recipe", str(path), "--optim.lr=0.25", "--bf16", "--languages", "en, sw", "--optim.warmup", "5"]
    made = parse(Root, argv, prog="train", positionals=["out"], recipes=True)
    assert made == Root(out="place", seed=3, bf16=True, languages=("en", "sw"), optim=Optim(lr=0.25, warmup=5))
    assert parse(Root, ["--bf16", "false", "--out", "x"], prog="p") == Root(out="x")
    assert parse(Root, ["--bf16", "--out", "x"], prog="p") == Root(out="x", bf16=True)


def test_a_last_place_of_many_takes_what_is_left_commas_and_all():
    places = ["out", "languages"]
    assert parse(Root, ["x", "a,b", "c"], prog="p", positionals=places) == Root(out="x", languages=("a,b", "c"))
    assert parse(Root, ["x", 'a"b\\ü'], prog="p", positionals=places) == Root(out="x", languages=('a"b\\ü',))
    assert parse(Root, ["x"], prog="p", positionals=places) == Root(out="x")
    assert parse(Root, ["x", "--languages", "a,b"], prog="p", positionals=places) == Root(out="x", languages=("a", "b"))
    with pytest.raises(UsageError, match="unexpected argument 'y'"):
        parse(Root, ["x", "y", "--languages", "a"], prog="p", positionals=places)


def test_a_dump_reads_back_equal(tmp_path):
    made = Root(out='a "quoted" ü', languages=("sw", "ja"), optim=Optim(lr=3e-5), bf16=True, loss="inbatch", seed=7)
    path = recipe(tmp_path, dump(made))
    assert build(Root, path) == made
    assert dump(build(Root, path)) == dump(made)


def test_an_unknown_key_names_the_file_and_the_nearest_key(tmp_path):
    path = recipe(tmp_path, 'out = "a"\n[optim]\nwarmpu = 3\n')
    assert complaint(lambda: build(Root, path)) == f"{path}: unknown setting optim.warmpu; did you mean 'warmup'?"
    path = recipe(tmp_path, 'out = "a"\nzzz = 1\n')
    assert complaint(lambda: build(Root, path)).startswith(f"{path}: unknown setting zzz; known: out, optim")
    line = complaint(lambda: parse(Root, ["--optim.lrr", "1"], prog="train"))
    assert line == "command line: unknown option --optim.lrr; did you mean 'optim.lr'?"
    assert "did you mean 'seed'?" in complaint(lambda: build(Root, None, {"sead": "1"}))


def test_a_wrong_type_names_the_file_the_key_and_what_was_expected(tmp_path):
    path = recipe(tmp_path, 'out = "a"\nseed = "many"\n')
    assert complaint(lambda: build(Root, path)) == f"{path}: seed must be a whole number, got many"
    path = recipe(tmp_path, 'out = "a"\n[optim]\nlr = [1]\n')
    line = complaint(lambda: build(Root, path))
    assert line.startswith(f"{path}: optim.lr must be a number, got ")
    path = recipe(tmp_path, 'out = "a"\noptim = 3\n')
    assert complaint(lambda: build(Root, path)) == f"{path}: optim must be a table [optim], got 3"
    line = complaint(lambda: build(Root, None, {"out": "a", "seed": "1.5"}))
    assert line.startswith("command line: seed must be a whole number, got ")
    line = complaint(lambda: build(Root, None, {"out": "a", "loss": "mocco"}))
    assert line.startswith("command line: loss must be one of moco, inbatch, got ")


def test_a_value_out_of_range_says_the_range(tmp_path):
    path = recipe(tmp_path, 'out = "a"\n[optim]\nlr = 0.0\n')
    line = complaint(lambda: build(Root, path))
    assert line.startswith(f"{path}: ")
    assert "lr must lie in (0, 1], got 0.0" in line
    line = complaint(lambda: build(Root, None, {"out": "a", "optim.schedule": "liner"}))
    assert "schedule must be one of linear, constant, got 'liner'; did you mean 'linear'?" in line


def test_a_missing_field_is_named(tmp_path):
    path = recipe(tmp_path, "seed = 1\n")
    assert complaint(lambda: build(Root, path)) == f"{path}: missing --out; see --help"
    assert complaint(lambda: parse(Root, [], prog="p", positionals=["out"])) == "command line: missing OUT; see --help"


def test_a_file_that_is_no_toml_is_named(tmp_path):
    path = recipe(tmp_path, "seed = = 1\n")
    assert complaint(lambda: build(Root, path)).startswith(f"{path}: not valid TOML: ")
    path.write_bytes(b'out = "\xff"\n')
    assert complaint(lambda: build(Root, path)).startswith(f"{path}: not valid TOML: ")
    missing = tmp_path / "none.toml"
    assert complaint(lambda: build(Root, missing)) == f"{missing}: cannot be read: No such file or directory"


def test_a_command_line_that_makes_no_sense_is_a_usage_error(tmp_path, monkeypatch):
    for argv, problem in [
        (["a", "b"], "p: unexpected argument 'b'; options look like --key value, see --help"),
        (["a", "--seed"], "p: option --seed needs a value"),
    ]:
        with pytest.raises(UsageError) as caught:
            parse(Root, argv, prog="p", positionals=["out"])
        assert str(caught.value) == problem
    (tmp_path / "quickstart.toml").write_text("")
    monkeypatch.setattr(settings, "RECIPES", tmp_path)
    assert settings.find_recipe("quickstart") == tmp_path / "quickstart.toml"
    with pytest.raises(UsageError, match="no such file, nor a recipe of that name; did you mean 'quickstart'"):
        parse(Root, ["--recipe", "quikstart"], prog="p", recipes=True)


def test_optional_positionals_are_left_out_together(capsys):
    @dataclass(frozen=True, kw_only=True)
    class Copy:
        """Copy."""

        source: str = ""
        """from"""
        out: str
        """to"""

    def read(*argv):
        return parse(Copy, argv, prog="p", positionals=["source", "out"])

    assert read("a", "b") == Copy(source="a", out="b")
    assert read("b") == Copy(out="b")
    assert read("a", "--out", "b") == read("--source=a", "b") == Copy(source="a", out="b")
    with pytest.raises(UsageError, match="unexpected argument 'c'"):
        read("a", "b", "c")
    with pytest.raises(SystemExit):
        read("--help")
    assert capsys.readouterr().out.startswith("usage: p [SOURCE] OUT [--key value ...]\n")


@pytest.mark.parametrize(
    ("value", "options", "inside"),
    [
        (0, {}, True),
        (1, {}, True),
        (0, {"low_open": True}, False),
        (1, {"high_open": True}, False),
        (1.1, {}, False),
        (float("nan"), {}, False),
    ],
)
def test_ranges(value, options, inside):
    if inside:
        in_range("x", value, 0, 1, **options)
    else:
        with pytest.raises(SettingsError, match="x must lie in"):
            in_range("x", value, 0, 1, **options)


WEIGHT = "unlabelled.weights.{} must lie in [0, 1000000000], got {}"


@pytest.mark.parametrize(
    ("overrides", "blamed", "said"),
    [
        ({"optim.lr": "-1"}, "command line", "optim.lr must lie in (0, 10], got -1.0"),
        ({"unlabelled.delete": "3"}, "command line", "unlabelled.delete must lie in [0, 1), got 3.0"),
        (
            {"unlabelled.crop_max": "0.1"},
            "command line",
            "unlabelled.crop_min must not exceed unlabelled.crop_max, got 0.2 and 0.1",
        ),
        (
            {"labelled.query_max_length": "1"},
            "command line",
            "labelled.query_max_length must lie in [4, 1048576], got 1",
        ),
        ({"model.layers": "0"}, "command line", "model.layers must lie in [1, 1000000], got 0"),
        ({"model.heads": "3"}, "command line", "model.heads must divide model.hidden (256) evenly, got 3"),
        ({"unlabelled.weights": '{"en": 1.0, "sw": -2}'}, "command line", WEIGHT.format("sw", -2.0)),
        ({"unlabelled.weights.sw": "-2"}, "command line", WEIGHT.format("sw", -2.0)),
        (
            {"unlabelled.weights.en": "0", "unlabelled.weights.th": "0"},
            "command line",
            "unlabelled.weights are all 0, which leaves no language; give one at least a weight",
        ),
        ({"unlabelled.weights.en": "2"}, "recipe", WEIGHT.format("th", -3.0)),
        ({"seed": "-1"}, "command line", "seed must lie in [0, 2147483647], got -1"),
        ({"steps": "0"}, "command line", "steps must lie in [1, 1000000000], got 0"),
        ({"output": ""}, "command line", "output is missing: name the folder of the run, --output DIR"),
        ({"batch.accumulation": "3"}, "command line", "batch.size 64 must be a multiple of batch.accumulation 3"),
        # what the recipe itself says wrong stays the recipe's, whatever else is overridden
        ({"steps": "9"}, "recipe", "unlabelled.window must lie in [8, 1048576], got 2"),
        ({"unlabelled.delete": "0.2"}, "recipe", "unlabelled.window must lie in [8, 1048576], got 2"),
        ({"optim.warmup": "3"}, "recipe", "seed must lie in [0, 2147483647], got -7"),
    ],
)
def test_what_is_out_of_range_is_blamed_on_who_said_it_by_its_full_name(overrides, blamed, said, tmp_path):
    text = (settings.RECIPES / "quickstart-pretrain.toml").read_text(encoding="utf-8")
    if "window" in said:
        text = text.replace("window = 128", "window = 2")
    elif "weights" in said:
        text += f"[unlabelled.weights]\nen = 1.0\nth = {-3.0 if blamed == 'recipe' else 3.0}\n"
    elif blamed == "recipe":
        text = "seed = -7\n" + text
    path = recipe(tmp_path, text)
    given = {"output": "x", "unlabelled.shards": "y"} | overrides
    line = complaint(lambda: build(TrainSettings, path, given))
    assert line == f"{path if blamed == 'recipe' else blamed}: {said}"


@pytest.mark.parametrize(
    ("high", "shown"), [(2**31 - 1, "2147483647"), (1e9, "1000000000"), (0.25, "0.25"), (1e-7, "1e-07"), (1, "1")]
)
def test_bounds_are_printed_exactly(high, shown):
    with pytest.raises(SettingsError) as caught:
        in_range("x", 1e99, 0, high)
    assert str(caught.value) == f"x must lie in [0, {shown}], got 1e+99"


def test_a_table_is_given_as_the_help_shows_it_or_an_entry_at_a_time(tmp_path):
    path = recipe(tmp_path, 'output = "x"\n[unlabelled]\nshards = "s"\nweights = {en = 1.0, th = 3.0}\n')

    def read(*words):
        return parse(TrainSettings, ["--recipe", str(path), *words], prog="p", recipes=True).unlabelled.weights

    (shown,) = (words for key, _, _, words in help_text.described(TrainSettings) if key == "unlabelled.weights")
    table = re.search(r"\{.*?\}", shown).group()
    assert read("--unlabelled.weights", table) == {"en": 2.0, "sw": 1.0}
    assert read('--unlabelled.weights={"en": 2, "zh-yue": 1e-3}') == {"en": 2.0, "zh-yue": 1e-3}
    assert read("--unlabelled.weights", "{}") == {}
    assert read("--unlabelled.weights.en", "2.0") == {"en": 2.0, "th": 3.0}
    assert read("--unlabelled.weights.zh-yue=0.5") == {"en": 1.0, "th": 3.0, "zh-yue": 0.5}
    for words in (["--unlabelled.weights", "many"], ["--unlabelled.weights.en", "many"]):
        expected = "command line: unlabelled.weights must be a table such as {en = 2.0, sw = 1.0}, got many"
        assert complaint(lambda words=words: read(*words)) == expected
    assert "did you mean 'unlabelled.weights'?" in complaint(lambda: read("--unlabelled.weigths.en", "2"))
    assert "unknown option --output.en" in complaint(lambda: read("--output.en", "2"))

from __future__ import annotations

import subprocess
import sys

import pytest

from mcontriever.artifact import writing
from mcontriever.cli import HEAVY, VERBS, entry, main
from mcontriever.errors import ArtifactError, SettingsError, UsageError, run_command
from mcontriever.version import __version__


def test_help_names_every_verb_on_a_line(capsys):
    assert run_command(main, ["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, verb in VERBS.items():
        assert sum(line.split()[:1] == [name] and line.endswith(verb.help) for line in lines) == 1
    assert max(map(len, lines)) <= 110


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys; from mcontriever.cli import main; main(['--help']); main(['--version']);"
        "heavy = {'torch', 'transformers', 'faiss', 'numpy', 'pandas', 'jsonargparse'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"mcontriever {__version__}\n" in done.stdout


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys; import mcontriever; mcontriever.__version__; dir(mcontriever);"
        "heavy = {'torch', 'transformers', 'faiss', 'numpy', 'tokenizers'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_heavy_verbs_are_verbs():
    assert set(VERBS) >= HEAVY


@pytest.mark.parametrize(
    ("words", "times"),
    [
        (["embed", "a"], 1),
        (["--local_rank=0", "embed", "a"], 1),
        (["embed", "--help"], 0),
        (["inspect", "embed"], 0),
        ([], 0),
    ],
)
def test_only_a_heavy_verb_starts_itself_anew(words, times, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sys, "argv", ["mcontriever", *words])
    monkeypatch.setattr("mcontriever.allocator.restart", lambda: asked.append(1))
    monkeypatch.setattr("mcontriever.cli.run_command", lambda main: 0)
    with pytest.raises(SystemExit):
        entry()
    assert len(asked) == times


def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "mcontriever", "serch", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "mcontriever: error: unknown verb 'serch'; did you mean 'search'?\n"


def test_no_verb_is_a_usage_error_that_shows_the_verbs(capsys):
    assert run_command(main, []) == 2
    captured = capsys.readouterr()
    assert "search" in captured.out
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help_with_its_settings(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: mcontriever {verb}")
    assert all(f"--{place}" in shown for place in VERBS[verb].positionals)


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_refuses_unknown_options_and_missing_ones(verb):
    with pytest.raises(SettingsError, match="unknown option --nonsense"):
        main([verb, "--nonsense", "1"])
    if verb != "doctor":  # which needs nothing, and would examine the machine
        with pytest.raises(UsageError, match="missing"):
            main([verb])


def test_search_says_what_is_wrong_in_one_line(tmp_path, capsys):
    assert run_command(main, ["search", str(tmp_path), "a question"]) == 1
    assert "not an index" in capsys.readouterr().err
    assert run_command(main, ["search", str(tmp_path), " "]) == 2
    assert "query is empty" in capsys.readouterr().err
    assert run_command(main, ["search", str(tmp_path), "a question", "--k", "0"]) == 2
    assert "k must lie in [1" in capsys.readouterr().err


def test_inspect(tmp_path, capsys):
    with writing(tmp_path / "made", "vectors") as draft:
        draft.meta |= {"count": 3, "names": ["a", "b"], "many": ["word"] * 900}
        (draft.folder / "a.txt").write_text("abc")
    main(["inspect", str(tmp_path / "made")])
    shown = capsys.readouterr().out
    assert "vectors, complete, 1 file" in shown
    assert "count:" in shown
    assert "names:                 a, b\n" in shown
    assert "many:                  word, word" in shown
    assert max(map(len, shown.splitlines())) < 200
    (tmp_path / "made/a.txt").write_text("abd")
    with pytest.raises(ArtifactError, match="checksum"):
        main(["inspect", str(tmp_path / "made")])
    (tmp_path / "made/manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        main(["inspect", str(tmp_path / "made")])
    with pytest.raises(ArtifactError, match="no such folder"):
        main(["inspect", str(tmp_path / "absent")])


def test_inspect_of_a_run_points_to_what_lies_in_it(tmp_path, capsys):
    run = tmp_path / "run"
    for name, kind in (("model", "checkpoint"), ("state-00000004", "train state")):
        with writing(run / name, kind) as draft:
            (draft.folder / "a.txt").write_text("abc")
    (run / "state-00000006").mkdir()
    assert run_command(main, ["inspect", str(run)]) == 1
    said = capsys.readouterr().err
    assert said.endswith(f"run; inspect what lies in it: {run / 'model'}, {run / 'state-00000004'}\n")


def test_inspect_shows_the_report_of_shards_as_prepare_did(tmp_path, capsys):
    (tmp_path / "text").mkdir()
    for number in range(40):
        code = f"{chr(97 + number % 26)}{chr(97 + number // 26)}"
        (tmp_path / "text" / f"{code}.jsonl").write_text('{"text": "coffee tea milk water bread coffee milk"}\n[]\n')
    given = [str(tmp_path / "text"), str(tmp_path / "shards"), "--vocab_size", "22", "--bad_lines", "40"]
    main(["prepare", *given])
    told = capsys.readouterr().err.splitlines()
    table = told[next(number for number, line in enumerate(told) if "tokens/word" in line) :]
    main(["inspect", str(tmp_path / "shards")])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith("MB")
    assert shown[1 : 1 + len(table)] == table
    assert len(table) == 1 + 40 + 1 + 5
    assert len(shown) < 60
    assert not any("[" in line or "{" in line for line in shown[1 + len(table) :])

"""Errors become exit codes and one line; what is not the user's fault keeps its traceback."""

import os
import sys

import pytest

from mcontriever import errors

KEPT = "nothing half-written was kept as whole"


def raising(error):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.DataError("en.jsonl:3: not\n  JSON"), 1, "en.jsonl:3: not JSON"),
        (errors.ArtifactError("x: damaged"), 1, "x: damaged"),
        (errors.UsageError("unexpected argument"), 2, "unexpected argument"),
        (errors.SettingsError("lr must be a number"), 2, "lr must be a number"),
        (errors.MissingExtra("needs faiss"), 1, "needs faiss"),
        (FileNotFoundError(2, "No such file", "a.txt"), 1, f"a.txt: No such file; {KEPT}"),
        (OSError(28, "No space left on device", "v.npy"), 1, f"v.npy: No space left on device; {KEPT}"),
        (MemoryError(), 1, f"out of memory; {KEPT}"),
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written was kept as whole, run it again to go on"),
    ],
)
def test_an_error_is_an_exit_code_and_one_line(error, code, line, capsys):
    assert errors.run_command(raising(error), []) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"mcontriever: error: {line}\n"


def test_arguments_reach_main_and_success_is_zero(capsys):
    seen = []
    assert errors.run_command(seen.append, ["a", "--debug", "b"]) == 0
    assert seen == [["a", "b"]]
    assert capsys.readouterr().err == ""


def test_debug_and_our_own_bugs_keep_the_traceback():
    with pytest.raises(errors.DataError):
        errors.run_command(raising(errors.DataError("x")), ["--debug"])
    with pytest.raises(ZeroDivisionError):
        errors.run_command(raising(ZeroDivisionError()), [])


def test_a_reader_that_left_is_no_error(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert errors.run_command(raising(BrokenPipeError()), []) == 141
        assert os.readlink(f"/proc/self/fd/{stream.fileno()}") == os.devnull


def test_the_nearest_known_name_is_told():
    assert errors.did_you_mean("bacth", ["batch", "seed"]) == "did you mean 'batch'?"
    assert errors.did_you_mean("zzz", ["batch", "seed"]) == "known: batch, seed"


def test_a_missing_extra_names_its_pip_line_and_a_broken_one_its_cause(tmp_path, monkeypatch):
    assert errors.require("json", "x", "y") is sys.modules["json"]
    with pytest.raises(errors.MissingExtra) as caught:
        errors.require("no_such_module_here", "cpu", "building an index")
    expected = "building an index needs no_such_module_here: pip install 'mcontriever[cpu]'"
    assert str(caught.value) == expected
    assert isinstance(caught.value, ImportError)
    (tmp_path / "broken_module_here.py").write_text("import what_it_lacks_itself\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_lacks_itself") as broken:
        errors.require("broken_module_here", "cpu", "building an index")
    assert not isinstance(broken.value, errors.MissingExtra)

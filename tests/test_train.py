"""The training entry under a launcher: one rank speaks for all, and no rank's own trouble is swallowed."""

import pytest

from mcontriever import train
from mcontriever.errors import SettingsError


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_rank_0_shows_the_help(rank, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    if rank == "0":
        with pytest.raises(SystemExit):
            train.main(["--local_rank=0", "--help"])
        assert "--unlabelled.shards" in capsys.readouterr().out
    else:
        train.main(["--local_rank=1", "--help"])
        assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("3", [train._OTHERS_WAIT_SECONDS])])
def test_other_ranks_give_rank_0_the_first_word_and_then_speak(rank, waits, monkeypatch):
    slept = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(train.time, "sleep", slept.append)
    with pytest.raises(SettingsError, match="unknown option --nonsense"):
        train.main(["--local_rank=3", "--nonsense", "1"])
    assert slept == waits


@pytest.mark.parametrize(
    ("raised", "code"), [(None, 0), (SystemExit(75), 75), (SystemExit(), 0), (SettingsError("wrong"), 2)]
)
def test_the_exit_code_is_told_and_the_interpreter_does_not_get_to_change_it(raised, code, monkeypatch, capsys):
    def main(argv):
        train.sys.stdout.write("told\n")
        if raised is not None:
            raise raised

    ended = []
    monkeypatch.setattr(train, "main", main)
    monkeypatch.setattr(train.os, "_exit", lambda code: ended.append((code, capsys.readouterr().out)))
    train.entry()
    assert ended == [(code, "told\n")]


def test_an_error_of_ours_still_shows_its_traceback(monkeypatch):
    monkeypatch.setattr(train, "main", lambda argv: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.entry()

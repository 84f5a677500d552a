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

"""Asked to leave, a run saves at the end of the step and says so by its exit code; asked again, it ends at once."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from mcontriever import training
from mcontriever.train import main
from mcontriever.training import loop, signals, train
from mcontriever.training.signals import Request, StoppedBySignal

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", signals.LISTENED_FOR)
def test_a_signal_is_remembered_and_the_handlers_come_back(number, capsys):
    before = signal.getsignal(number)
    with Request(CPU) as request:
        assert not request.made()
        os.kill(os.getpid(), number)
        assert request.made()
        os.kill(os.getpid(), number)  # what a launcher passes on a moment later is the same request
        assert str(request.leave(7)).startswith(f"stopped by {number.name}; the state after step 7 is saved")
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err.count("saving after this step") == 1


def test_a_later_signal_ends_at_once(monkeypatch):
    killed, set_to = [], []
    with Request(CPU) as request:
        os.kill(os.getpid(), signal.SIGTERM)
        request._when -= signals.SAME_SECONDS + 1
        monkeypatch.setattr(signals.os, "kill", lambda process, number: killed.append((process, number)))
        monkeypatch.setattr(signals.signal, "signal", lambda number, handler: set_to.append((number, handler)))
        request._hear(signal.SIGUSR1, None)
    assert killed == [(os.getpid(), signal.SIGUSR1)]
    assert set_to[0] == (signal.SIGUSR1, signal.SIG_DFL)
    monkeypatch.undo()
    for number in signals.LISTENED_FOR:
        signal.signal(number, signal.SIG_DFL)


def test_a_run_that_is_asked_saves_leaves_and_goes_on_bit_for_bit(recipe, shards, tmp_path, monkeypatch):
    whole = train(recipe(shards, tmp_path / "whole"))
    real, calls = loop.train_step, []

    def asked_during_the_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(*arguments)

    monkeypatch.setattr(loop, "train_step", asked_during_the_third)
    with pytest.raises(StoppedBySignal, match="stopped by SIGUSR1; the state after step 3 is saved") as stopped:
        train(recipe(shards, tmp_path / "asked"))
    assert stopped.value.exit_code == 75
    assert sorted(path.name for path in (tmp_path / "asked").glob("state-*")) == ["state-00000002", "state-00000003"]
    resumed = train(recipe(shards, tmp_path / "asked"))
    assert len(calls) == 6
    expected, got = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_command_says_so_once_and_ends_with_its_code_on_every_rank(monkeypatch, capsys, rank):
    def asked(recipe):
        raise StoppedBySignal("stopped by SIGTERM")

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(training, "train", asked)
    with pytest.raises(SystemExit) as ended:
        main(["--output", "run", "--unlabelled.shards", "shards"])
    assert ended.value.code == 75
    assert capsys.readouterr().err == ("mcontriever: stopped by SIGTERM\n" if rank == "0" else "")

"""Real launchers and signals: torchrun passes some on, deepspeed none, and `supervise` makes up for both."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from launching import DEEPSPEED_TWO, TORCHRUN_TWO, TRAIN, deepspeed_config, make_recipe
from safetensors.torch import load_file
from torch import equal

from mcontriever.training import metrics, state

pytestmark = pytest.mark.slow

ZERO = deepspeed_config()
SUPERVISE = [sys.executable, "-m", "mcontriever", "supervise", "--wait", "0.1", "--"]
STEPS = 120  # so many that there is time to send a signal, and so short that all of them take a moment


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("supervised"), ["en"], {"steps": STEPS, "saving.every": 1000})


def start(launcher, recipe, output, *options):
    command = [*launcher, TRAIN, "--recipe", str(recipe), "--output", str(output), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def reached(output):
    return max((line["step"] for line in metrics.read(output / metrics.NAME)), default=0)


def wait_for_steps(process, output, count=5):
    until = time.monotonic() + 120
    while reached(output) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def ended(process):
    return "".join(text or "" for text in process.communicate(timeout=180))


def weights(output):
    return load_file(output / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(recipe):
    output = recipe.parent / "whole"
    process = start(TORCHRUN_TWO, recipe, output, *ZERO)
    said = ended(process)
    assert process.returncode == 0, said
    return weights(output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_torchrun_passes_on_what_it_is_told_to(number, recipe, tmp_path):
    output = tmp_path / "run"
    process = start([*TORCHRUN_TWO, "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"], recipe, output)
    wait_for_steps(process, output)
    process.send_signal(number)
    said = ended(process)
    assert f"stopped by {number.name}; the state after step" in said
    assert len(state.states(output)) == 1
    assert process.returncode != 0, "torchrun keeps the ranks' code to itself"


def test_supervised_under_deepspeed_a_signal_saves_and_the_exit_code_says_so(recipe, tmp_path, whole):
    output = tmp_path / "run"
    process = start([*SUPERVISE, *DEEPSPEED_TWO], recipe, output, *ZERO)
    wait_for_steps(process, output)
    process.send_signal(signal.SIGUSR1)
    said = ended(process)
    assert process.returncode == 75, said
    assert "told to end by SIGUSR1; the job ended with exit code 75" in said
    assert len(state.states(output)) == 1
    again = start(TORCHRUN_TWO, recipe, output, *ZERO)
    said = ended(again)
    assert again.returncode == 0, said
    assert "resuming after step" in said
    assert all(equal(value, weights(output)[name]) for name, value in whole.items())


def test_supervised_a_killed_rank_brings_the_whole_job_back(recipe, tmp_path, whole):
    output = tmp_path / "run"
    process = start([*SUPERVISE, *TORCHRUN_TWO], recipe, output, *ZERO, "--saving.every", "3")
    wait_for_steps(process, output, 7)
    os.kill(rank_of(output, "1"), signal.SIGKILL)
    said = ended(process)
    assert process.returncode == 0, said
    assert "supervise: start 1 ended with exit code" in said
    assert "resuming after step" in said
    assert all(equal(value, weights(output)[name]) for name, value in whole.items())


def rank_of(output, number):
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={number}".encode() in variables and str(output).encode() in words and b"run" not in words[2:3]:
            return int(folder.name)
    raise AssertionError("no such rank")


LEAP = ["--guard.spike_sigmas", "0.01", "--guard.window", "2"]  # which any loss soon makes


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [(["--optim.lrr", "1"], 2, "cannot mend what it was given"), (LEAP, 65, "would come to the same end")],
)
def test_supervised_what_a_restart_does_not_mend_is_not_tried_again(recipe, tmp_path, options, code, why):
    process = start([*SUPERVISE, *TORCHRUN_TWO], recipe, tmp_path / "run", *options)
    said = ended(process)
    assert process.returncode == code, said
    assert f"a restart {why}" in said
    assert "starting again" not in said

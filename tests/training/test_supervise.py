"""A job that died is started again as a whole, as long as that brings something; here the job is a few lines."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from mcontriever import cli
from mcontriever.errors import UsageError
from mcontriever.training import supervise
from mcontriever.training.guards import BadStep
from mcontriever.training.supervise import GaveUp, SuperviseSettings

pytestmark = pytest.mark.slow

JOB = """
import json, os, pathlib, signal, subprocess, sys, time
run, reports = pathlib.Path({run!r}), pathlib.Path(os.environ["MCONTRIEVER_REPORT"])
run.mkdir(exist_ok=True)
(reports / "output-0").write_text(json.dumps(str(run)))
starts = len(list(run.glob("start-*"))) + 1
(run / f"start-{{starts}}").touch()
def step(number):
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({{"step": number}}) + "\\n")
def end(code):
    (reports / "code-0").write_text(json.dumps(code))
    sys.exit(1)  # as torchrun would
"""


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def command(run, body):
    return (sys.executable, "-c", JOB.format(run=str(run)) + body)


def start(run, body, **settings):
    supervise.supervise(SuperviseSettings(command=command(run, body), **{"wait": 0.01, "retries": 1, **settings}))


def starts(run):
    return len(list(run.glob("start-*")))


def test_a_job_that_ends_well_is_started_once(run):
    start(run, "step(1)")
    assert starts(run) == 1


def test_a_job_that_gets_on_is_restarted_however_often_it_dies(run, capsys):
    start(run, "step(starts)\nif starts < 6: os.kill(os.getpid(), signal.SIGKILL if starts % 2 else signal.SIGSEGV)")
    assert starts(run) == 6
    said = capsys.readouterr().err
    assert "supervise: start 1 was killed by SIGKILL after step 1; starting again in" in said
    assert "supervise: start 2 was killed by SIGSEGV after step 2; starting again in" in said
    assert (run / "supervise.log").read_text() == said


def test_a_job_that_gets_no_further_is_given_up(run):
    with pytest.raises(GaveUp, match=r"ended with exit code 3; 2 restarts in a row came no further than step 7"):
        start(run, "step(7)\nsys.exit(3)", retries=2)
    assert starts(run) == 3


def test_a_newer_train_state_is_progress_too(run):
    with pytest.raises(GaveUp, match="no further than step 3"):
        start(run, "(run / f'state-{min(starts, 3):08d}').mkdir(exist_ok=True)\nsys.exit(1)", retries=1)
    assert starts(run) == 4


@pytest.mark.parametrize(("code", "why"), [(2, "cannot mend"), (BadStep.exit_code, "would come to the same end")])
def test_what_a_restart_cannot_mend_is_not_tried_again(run, code, why):
    with pytest.raises(
        GaveUp, match=rf"ended with exit code {code} \(its launcher with 1\): a restart {why}"
    ) as gave_up:
        start(run, f"(reports / 'code-1').write_text('75')\nend({code})", retries=5)
    assert starts(run) == 1
    assert gave_up.value.exit_code == code


def test_a_rank_that_was_told_to_stop_by_another_is_started_again(run):
    start(run, "step(starts)\nif starts == 1: end(75)")
    assert starts(run) == 2


def test_ranks_left_over_are_killed_before_the_next_start(run):
    # the first start leaves a process in a session of its own, which torchrun does with every rank
    body = """
if starts == 1:
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    (run / "left").write_text(str(left.pid))
    sys.exit(1)
"""
    start(run, body)
    left = int((run / "left").read_text())
    until = time.monotonic() + 10
    while time.monotonic() < until and _runs(left):
        time.sleep(0.05)
    assert not _runs(left)


def _runs(process):
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


RANK = """
asked = []
signal.signal(signal.{name}, lambda *_: asked.append(1))
step(1)
while not asked: time.sleep(0.01)
time.sleep(0.3)
(run / ("saved-" + os.environ["LOCAL_RANK"])).touch()
sys.exit(75)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_told_to_end_it_tells_the_ranks_and_lets_them_save(run, name):
    # a launcher that passes nothing on, as deepspeed's, and dies of the signal itself
    launcher = f"""
ranks = [subprocess.Popen([sys.executable, "-c", {JOB.format(run=str(run)) + RANK.format(name=name)!r}],
    env={{**os.environ, "LOCAL_RANK": str(rank)}}, start_new_session=True) for rank in range(2)]
codes = [rank.wait() for rank in ranks]
end(max(codes))
"""
    asking = threading.Thread(target=_when_they_run, args=(run, 2, signal.Signals[name]))
    asking.start()
    with pytest.raises(GaveUp, match=rf"told to end by {name}; the job ended with exit code 75") as gave_up:
        start(run, launcher, grace=60)
    asking.join()
    assert gave_up.value.exit_code == 75
    assert sorted(path.name for path in run.glob("saved-*")) == ["saved-0", "saved-1"]
    assert starts(run) == 3, "the launcher and its two ranks; nothing after that"


def _lines(run):
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_a_job_that_does_not_end_when_told_is_killed_after_a_while(run):
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nstep(1)\ntime.sleep(60)"
    began = time.monotonic()
    asking = threading.Thread(target=_when_they_run, args=(run, 1, signal.SIGTERM))
    asking.start()
    with pytest.raises(GaveUp, match="told to end by SIGTERM; the job was killed by SIGKILL"):
        start(run, body, grace=0.2)
    asking.join()
    assert time.monotonic() - began < 50


def _when_they_run(run, ranks, number):
    while len(_lines(run)) < ranks:
        time.sleep(0.02)
    os.kill(os.getpid(), number)


def test_no_command_and_one_that_is_not_there(run):
    with pytest.raises(UsageError, match="give it after two dashes"):
        SuperviseSettings()
    with pytest.raises(UsageError, match="no-such-program x: No such file"):
        supervise.supervise(SuperviseSettings(command=("no-such-program", "x")))


def test_the_command_line_takes_all_after_two_dashes_as_it_stands(tmp_path):
    words = ["--wait", "x y", '"quoted"', "--", "back\\slash"]
    code = "import pathlib, json, sys; pathlib.Path(sys.argv[1]).write_text(json.dumps(sys.argv[2:]))"
    cli.main(["supervise", "--retries", "0", "--", sys.executable, "-c", code, str(tmp_path / "told"), *words])
    assert json.loads((tmp_path / "told").read_text()) == words


def test_a_rank_reports_only_where_someone_asks(tmp_path, monkeypatch):
    supervise.report(code=1)
    monkeypatch.setenv(supervise.REPORT, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    supervise.report(code=2, output="there")
    assert {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()} == {
        "code-3": 2,
        "output-3": "there",
    }

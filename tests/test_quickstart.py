"""The quickstart: how it runs its steps (quick, with commands of a line), and the whole road itself (slow)."""

from __future__ import annotations

import html
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcontriever.errors import McontrieverError, UsageError, run_command
from mcontriever.evaluation import Results, Value

ROOT = Path(__file__).resolve().parents[1]
PAIRS = "ar-en,sw-en"
SCRIPT = ROOT / "scripts" / "quickstart.py"


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("quickstart_steps")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "input").write_text("one")
    return tmp_path


@pytest.fixture
def quickstart(steps):
    return importlib.import_module("quickstart")


def step_of(steps, place, code, **more):
    command = ("python", "-c", code, str(place / "result"))
    return steps.Step("try", command, (str(place / "input"),), str(place / "result"), **more)


WRITES = "import sys; open(sys.argv[1], 'a').write('x'); print('done')"


def test_a_step_runs_once_and_again_when_its_input_or_result_is_not_what_it_was(steps, place, capsys):
    def runs() -> bool:
        return steps.Walk(place).do(step_of(steps, place, WRITES))

    assert runs()
    shown = capsys.readouterr().out
    assert "\n$ python -c " in shown
    assert "\ndone\n" in shown
    assert not runs()
    assert "try: done before" in capsys.readouterr().out
    (place / "input").write_text("two")
    assert runs()
    assert (place / "result").read_text() == "xx"
    (place / "result").unlink()
    assert runs()
    assert not runs()


def test_what_took_long_is_not_made_again_from_something_else_without_a_word(steps, place):
    walk = steps.Walk(place)
    step = step_of(steps, place, WRITES, kind="checkpoint")
    with pytest.raises(McontrieverError, match="result is not there whole"):  # a plain file is no checkpoint
        walk.do(step)
    (place / "input").write_text("two")
    with pytest.raises(UsageError, match="--fresh"):
        steps.Walk(place).do(step)
    assert (place / "result").read_text() == "x"


def test_a_failure_says_which_step_its_exit_code_and_its_last_words(steps, place, capfd):
    code = (
        "print('[2026-01-01 00:00:00,123] [INFO] [launch.py:1:main] no' + 'ise'); print('at work'); raise SystemExit(7)"
    )
    with pytest.raises(McontrieverError, match=r"step try failed \(exit code 7\)") as failure:
        steps.Walk(place).do(step_of(steps, place, code))
    said = capfd.readouterr()
    assert "  | at work" in said.err
    assert "noise" not in said.out + said.err
    log = Path(re.search(r"is in (\S+)$", str(failure.value))[1])
    assert "noise" in log.read_text()
    assert not json.loads((place / steps.RECORD).read_text())["try"]["ended"]


def test_a_command_that_ends_well_without_its_result_has_failed(steps, place):
    with pytest.raises(McontrieverError, match="exit code 0, but .*result is not there whole"):
        steps.Walk(place).do(step_of(steps, place, "print('nothing')"))


def test_the_memory_told_is_that_of_all_processes_together(steps, place):
    block = "b = bytearray(200_000_000); import time; time.sleep(1.2)"
    code = f"""
import subprocess, sys
for child in [subprocess.Popen([sys.executable, "-c", {block!r}]) for _ in range(2)]: child.wait()
open(sys.argv[1], "w")"""
    walk = steps.Walk(place)
    walk.do(step_of(steps, place, code))
    assert 400e6 < walk.record["try"]["memory"] < 600e6


def test_two_cannot_work_in_one_folder_and_what_a_killed_one_left_is_ended(steps, place, capsys):
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(place)], start_new_session=True)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        (place / steps.RECORD).write_text(json.dumps({"session": other.pid}))
        with steps.alone(place):  # the number may have come to somebody else
            assert other.poll() is None
        (place / steps.RECORD).write_text(json.dumps({"session": left.pid}))
        with steps.alone(place):
            assert left.wait(timeout=10) == -signal.SIGKILL
            assert "left running" in capsys.readouterr().out
            with pytest.raises(UsageError, match="another quickstart is at work"), steps.alone(place):
                pass
        with steps.alone(place):
            pass
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


def results(**rows):
    tasks = ("en-en", "ar-en", "sw-en")
    found = Results({})
    for system, values in rows.items():
        for task, value in zip(tasks, values, strict=True):
            found.add(Value(system.replace("_", " ").replace("fine ", "fine-"), task, "MRR@10", value, 1, 1))
    return found


GOOD = {
    "BM25": (0.9, 0.1, 0.3),
    "random_encoder": (0.2, 0.2, 0.1),
    "pretrained": (0.5, 0.4, 0.4),
    "fine_tuned": (0.5, 0.41, 0.4),
}


def test_a_run_that_shows_what_it_is_to_show_says_so_and_what_fine_tuning_added(quickstart):
    holds, said = quickstart.judge(results(**GOOD))
    assert holds
    assert "Checked, and it holds: by MRR@10 the fine-tuned encoder beats the random one in all 3 tasks" in said
    assert "Arabic→English (0.41 against 0.10 and 0.20) and Swahili→English (0.40 against 0.30 and 0.10)" in said
    assert "Fine-tuning added about nothing: over all tasks the mean is 0.433 pretrained, 0.437 fine-tuned." in said
    for row, told in (((0.6, 0.5, 0.6), "added something"), ((0.3, 0.35, 0.4), "took something away")):
        assert f"Fine-tuning {told}" in quickstart.judge(results(**GOOD | {"fine_tuned": row}))[1]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ((0.2, 0.41, 0.4), "English does not beat the random encoder."),
        ((0.5, 0.15, 0.4), "Arabic→English does not beat the random encoder."),
        ((0.5, 0.41, 0.3), "Swahili→English does not beat BM25."),
        (
            (0.5, float("nan"), 0.4),
            "Arabic→English does not beat the random encoder; Arabic→English does not beat BM25.",
        ),
    ],
)
def test_a_run_that_does_not_says_where(quickstart, row, fault):
    holds, said = quickstart.judge(results(**GOOD | {"fine_tuned": row}))
    assert not holds
    assert f"it DOES NOT HOLD: by MRR@10, {fault}" in said


@pytest.mark.parametrize(("more", "code"), [((), 1), (("--steps", "3"), 0)])
def test_only_the_whole_recipe_fails_for_it(quickstart, tmp_path, monkeypatch, capsys, more, code):
    bad = results(**GOOD | {"fine_tuned": (0.1, 0.1, 0.1)})
    done = [quickstart.Step(name, (), (), "x") for name in ("evaluate",)]
    entry = {"seconds": 1.0, "memory": 1, "shown": ""}
    monkeypatch.setattr(quickstart, "road", lambda *_: done)
    monkeypatch.setattr(quickstart.Walk, "do", lambda self, step: self.record.update({step.name: entry}))
    monkeypatch.setattr(quickstart.Results, "read", lambda _: bad)
    monkeypatch.setattr(quickstart, "_answer", lambda *_: None)
    pages = []
    monkeypatch.setattr(quickstart, "_write_page", lambda *given: pages.append(given[2]))
    assert run_command(quickstart.main, ["--out", str(tmp_path / "out"), *more]) == code
    said = capsys.readouterr()
    assert "DOES NOT HOLD" in said.out
    assert "DOES NOT HOLD" in pages[0]
    assert said.err.count("\n") == code


def test_pairs_that_leave_out_what_is_searched_are_refused(quickstart):
    with pytest.raises(UsageError, match="ar-en and sw-en must be among them"):
        quickstart.QuickstartSettings(pairs=("en-en", "ar-en"))


def interruptible():
    """A shell that runs the tests in its background has SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(out, *more):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--out", str(out), "--steps", "2", "--pairs", PAIRS, *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        start_new_session=True, cwd=out.parent, env=environment, preexec_fn=interruptible,
    )  # fmt: skip


def ended(process, seconds=500):
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


def wait_for(process, folder, pattern, seconds=180):
    end = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"no {pattern} after {seconds} s"
        time.sleep(0.05)


@pytest.mark.slow
def test_the_whole_road_killed_in_pretraining_continued_and_then_found_done(steps, tmp_path):
    out = tmp_path / "out"
    first = start(out)
    wait_for(first, out, "pretrain/state-*")
    for process in steps._members(json.loads((out / "quickstart.json").read_text())["session"]):
        os.kill(process, signal.SIGSTOP)  # or so few steps would be done before the next start sees them at work
    os.killpg(first.pid, signal.SIGKILL)  # itself alone: its steps have sessions of their own
    first.communicate()
    assert not (out / "pretrain/model").exists()

    code, said = ended(start(out))
    assert code == 0, said
    assert "prepare: done before" in said
    assert "left running here" in said  # the launcher hands no signal on
    assert "resuming after step" in said
    assert "[INFO]" not in said
    assert "MRR@10" in said
    for answer in ("search-ar", "search-sw"):  # what was searched and what the verdict is read from agree
        top = re.findall(r"^ \d\. .*\u2068(.*)\u2069$", (out / f"logs/{answer}.log").read_text(), re.MULTILINE)
        language = answer.removeprefix("search-")
        question = {"ar": "kilimanjaro-q1", "sw": "marie-curie-q1"}[language]
        run = (out / f"evaluation/runs/fine-tuned.{language}-en.trec").read_text().splitlines()
        ranked = [line.split()[2] for line in run if line.startswith(f"{question} ")]
        titles = {}
        for line in (ROOT / "mcontriever/sample/corpus.en.jsonl").read_text(encoding="utf-8").splitlines():
            titles[json.loads(line)["_id"]] = json.loads(line)["title"]
        assert top == [titles[name] for name in ranked[:3]]
    assert len(re.findall(r"the right passage, “[^”]+”, (?:came|is not)", said)) == 2
    assert "Report: " in said
    assert said.rpartition("Next:")[2].count("    $ ") == 3
    told = [json.loads(line)["step"] for line in (out / "pretrain/metrics.jsonl").read_text().splitlines()]
    assert told == list(range(1, 3))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "kilimanjaro" in page.lower()
    checked = re.search(r"Checked, and it .*? fine-tuned\.", said)[0]
    assert checked in html.unescape(page)
    assert "://" not in page

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    shutil.rmtree(out / "vectors")
    code, said = ended(start(out), 60)
    assert code == 0, said
    assert said.count(": done before") == 8 - 1  # made again, the same bits: what follows stands
    assert re.findall(r"^\$ mcontriever (\w+)", said, re.MULTILINE) == ["embed"]
    assert len(re.findall(r"the right passage, “[^”]+”, (?:came|is not)", said)) == 2
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


@pytest.mark.slow
def test_interrupted_it_says_one_line_and_leaves_nothing_running(tmp_path):
    process = start(tmp_path / "out")
    wait_for(process, tmp_path / "out", "logs/pretrain.log")
    time.sleep(2)
    session = json.loads((tmp_path / "out/quickstart.json").read_text())["session"]
    process.send_signal(signal.SIGINT)
    code, said = ended(process, 30)
    assert code == 130
    assert said.rstrip().splitlines()[-1].startswith("mcontriever: error: interrupted")
    assert "Traceback" not in said
    listed = subprocess.run(["ps", "-eo", "sess,stat"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert not [line for line in listed if line.split()[0] == str(session) and "Z" not in line.split()[1]]


@pytest.mark.slow
def test_begun_anew_it_removes_its_own_work_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    (out / "shards").mkdir(parents=True)
    (out / "mine").mkdir()
    (out / "mine" / "file").write_text("mine")
    code, said = ended(start(out), 60)
    assert code == 1
    assert re.search(r"step prepare failed \(exit code 1\); all it said is in \S+/logs/prepare.log", said)
    process = start(out, "--fresh")
    wait_for(process, out, "shards/manifest.json")
    process.send_signal(signal.SIGINT)
    assert ended(process, 30)[0] == 130
    assert (out / "mine/file").read_text() == "mine"

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcontriever import allocator

ROOT = Path(__file__).resolve().parents[1]
NAMES = {*allocator.SETTINGS, allocator.MARK, "GLIBC_TUNABLES", "MALLOC_CONF", "LD_PRELOAD"}


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator, "_is_glibc", lambda: True)
    monkeypatch.setattr(allocator, "_glibc_version", lambda: (2, 36))


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        (allocator.MARK, "set", "done already"),
        (allocator.MARK, "off", "off in the environment"),
        ("MALLOC_TOP_PAD_", "0", "MALLOC_TOP_PAD_ in the environment"),
        ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0", "GLIBC_TUNABLES"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2", "LD_PRELOAD"),
    ],
)
def test_what_the_user_chose_is_left(name: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert allocator.why_not() == ""
    monkeypatch.setenv(name, value)
    assert why in allocator.why_not()


def test_only_glibc_knows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def unknown(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unknown)
    monkeypatch.delenv(allocator.MARK, raising=False)
    assert not allocator._is_glibc()


@pytest.mark.parametrize(
    ("said", "why"), [("glibc 2.34", "glibc older than 2.35"), ("glibc 2.35", ""), ("glibc 3.0", "")]
)
def test_a_glibc_that_refuses_the_threshold_is_left_alone(said: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "confstr", lambda name: said)
    assert allocator.why_not() == why


def test_somebody_elses_program_is_never_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    assert allocator.why_not() == ""
    allocator.restart()  # this program is pytest
    assert not started
    allocator.restart(anything=True)  # unless its author says so
    assert len(started) == 1


def test_it_is_the_same_command_that_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(allocator, "_is_command", lambda: True)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "-m", "mcontriever.train", "--recipe", "a b"])
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    allocator.restart()
    [(program, words, environment)] = started
    assert program == sys.executable
    assert words == [sys.executable, "-u", "-m", "mcontriever.train", "--recipe", "a b"]
    assert {name: environment[name] for name in allocator.SETTINGS} == allocator.SETTINGS
    monkeypatch.setattr(os, "environ", environment)
    allocator.restart()
    assert len(started) == 1


def test_it_goes_on_where_it_cannot_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(allocator, "_is_command", lambda: True)
    monkeypatch.setattr(os, "execve", refuse)
    monkeypatch.setenv(allocator.MARK, "")
    allocator.restart()
    assert "Permission denied" in allocator.why_not()


# A stand-in for a verb: it says who it is and what it was given, then waits to be interrupted.
PROBE = """
import os, signal, sys, time
from mcontriever import allocator
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
path = sys.argv[1]
allocator._is_command = lambda: True
before = os.environ.get(allocator.MARK)
allocator.restart()
with open(path, "a") as out:
    print(os.getpid(), os.getppid(), os.environ.get(allocator.MARK), sys.argv[2:], sys.flags.optimize, file=out)
try:
    time.sleep(60 if "wait" in sys.argv else 0)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the settings")
def test_the_process_its_parent_and_its_words_stay(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    out = tmp_path / "out"
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-O", str(tmp_path / "probe.py"), str(out), "a b", "", "wait"]
    with subprocess.Popen(command, env=environment) as process:
        while not out.exists() or not out.read_text().endswith("\n"):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert out.read_text() == f"{process.pid} {os.getpid()} set ['a b', '', 'wait'] 1\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the settings")
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "mcontriever", "embed"],
        ["-m", "mcontriever.train"],
        [str(ROOT / "mcontriever/train.py"), "--local_rank=0"],
    ],
)
def test_the_commands_do_it_and_say_the_same_as_without(command: list[str], tmp_path: Path) -> None:
    # the first thing that Python starts with is a hook of ours that tells of every start
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nwith open(os.environ['STARTS'], 'a') as out:\n"
        "    print(os.environ.get('MALLOC_TOP_PAD_'), file=out)\n"
    )
    results = []
    for mark, starts in (("", ["None", allocator.SETTINGS["MALLOC_TOP_PAD_"]]), ("off", ["None"])):
        told = tmp_path / f"starts{mark}"
        environment = {name: value for name, value in os.environ.items() if name not in NAMES}
        environment |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "STARTS": str(told), allocator.MARK: mark}
        words = [sys.executable, *command, "--nonsense", "1"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        results.append((done.returncode, done.stdout, done.stderr))
        assert told.read_text().split() == starts
    assert results[0] == results[1]
    assert results[0][0] == 2

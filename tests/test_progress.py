"""Progress: silent when quick, plain lines elsewhere than on a terminal, rate and time left in closed form."""

import re
import time

import pytest

from mcontriever import progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(capsys, seconds_each, steps=10, total=10, **options):
    clock = Clock()
    bar = progress.Bar("Embedding", total, "passages", clock=clock, **options)
    for _ in range(steps):
        clock.now += seconds_each
        bar.advance()
    bar.close()
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_quick_work_says_nothing(capsys):
    assert run(capsys, 0.1) == ""


def test_slow_work_says_lines_now_and_then(capsys):
    lines = run(capsys, 3.0).splitlines()
    assert lines == [
        "Embedding  1/10 passages  10%  3.0 s each  ETA 0:27",
        "Embedding  5/10 passages  50%  3.0 s each  ETA 0:15",
        "Embedding  9/10 passages  90%  3.0 s each  ETA 0:03",
        "Embedding  10/10 passages  100%  3.0 s each  ETA 0:00",
    ]


def test_the_end_is_said_once(capsys):
    lines = run(capsys, 3.0, steps=9, total=9).splitlines()
    assert lines[-1] == "Embedding  9/9 passages  100%  3.0 s each  ETA 0:00"
    assert len(lines) == len(set(lines)) == 3


def test_a_bar_that_never_spoke_stays_silent_however_long_it_was_open(capsys):
    clock = Clock()
    bar = progress.Bar("Embedding", 10, "passages", clock=clock)
    clock.now = 100.0
    bar.close()
    assert capsys.readouterr().err == ""


def wait_for_a_line(capsys, shown=True):
    with progress.bar("Embedding", 10, "passages", shown=shown) as running:
        text, give_up = "", time.monotonic() + (10 if shown else 0.2)
        while not text and time.monotonic() < give_up:
            time.sleep(0.01)
            text = capsys.readouterr().err
        running.advance(10)
    return text, capsys.readouterr().err


def test_a_slow_first_step_is_announced_once(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.02)
    first, rest = wait_for_a_line(capsys)
    assert first == "Embedding  0/10 passages  0%  -\n"
    assert rest.startswith("Embedding  10/10 passages  100%")
    assert rest.count("\n") == 1


def test_a_slow_first_step_of_other_ranks_is_not(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.02)
    assert wait_for_a_line(capsys, shown=False) == ("", "")


def test_nothing_is_announced_after_the_end_or_after_a_line(capsys):
    clock = Clock()
    bar = progress.Bar("Embedding", 10, "passages", clock=clock)
    bar.close()
    bar.announce()
    assert capsys.readouterr().err == ""
    bar = progress.Bar("Embedding", 10, "passages", clock=clock)
    clock.now = 3.0
    bar.advance()
    bar.announce()
    assert capsys.readouterr().err.count("\n") == 1


def test_other_ranks_are_silent(capsys):
    assert run(capsys, 3.0, shown=False) == ""


def test_an_unknown_total_has_no_time_left(capsys):
    assert "ETA" not in run(capsys, 3.0, total=None)


def test_a_terminal_gets_one_line_rewritten(capsys, monkeypatch):
    monkeypatch.setattr(progress.Bar, "_live", True)
    text = run(capsys, 3.0)
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert len(re.findall("\r", text)) == 11


def test_what_is_told_is_a_line_at_once_and_moves_the_next_one_on(capsys):
    clock = Clock()
    bar = progress.Bar("Training", 10, "steps", clock=clock, line_seconds=60.0)
    for seconds, tell in ((0.1, True), (50.0, True), (59.0, False), (2.0, False), (1.0, True)):
        clock.now += seconds
        bar.tell(loss="1") if tell else bar.advance()
    told = [line.split("  ")[1] for line in capsys.readouterr().err.splitlines()]
    assert told == ["1/10 steps", "2/10 steps", "4/10 steps", "5/10 steps"]


def test_what_is_told_goes_into_a_live_bar_no_wider_than_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress.Bar, "_live", True)
    monkeypatch.setenv("COLUMNS", "40")
    clock = Clock()
    bar = progress.Bar("Training", 10, "steps", clock=clock)
    bar.tell(loss="1.234")
    assert capsys.readouterr().err == ""
    clock.now = 3.0
    bar.advance()
    assert capsys.readouterr().err == "\r\x1b[2KTraining  2/10 steps  20%  1.5 s each  "[:45]


def test_a_note_is_a_line_of_its_own(capsys, monkeypatch):
    progress.note("saved")
    assert capsys.readouterr().err == "saved\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress.note("saved")
    assert capsys.readouterr().err == "\r\x1b[2Ksaved\n"


def test_a_resumed_count_has_the_rate_of_this_run():
    clock = Clock()
    bar = progress.Bar("Training", 100, "steps", done=50, clock=clock)
    clock.now = 10.0
    bar.advance(20, loss="1.5")
    assert bar.line() == "Training  70/100 steps  70%  2.0/s  ETA 0:15  loss 1.5"


def test_track_gives_the_items_and_closes_on_an_error(capsys):
    assert list(progress.track(iter("abc"), "Reading", "files")) == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError), progress.bar("Reading", 1, "files") as bar:
        bar.advance(1 // 0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (123, "2:03"), (3723, "1:02:03"), (-1, "0:00")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text

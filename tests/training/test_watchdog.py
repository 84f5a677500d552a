"""A rank that stands still says where, and ends; one that gets on is left alone."""

import contextlib
import threading
import types

import pytest

from mcontriever.training import watchdog
from mcontriever.training.watchdog import Watchdog


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(watchdog, "OTHERS_SPEAK_SECONDS", 0.0)


def hung_here(ended):
    assert ended.wait(20)


def test_silence_is_reported_with_the_stack_of_every_thread_and_ends_the_process(capfd):
    ended, codes, release = threading.Event(), [], threading.Event()
    idle = threading.Thread(target=release.wait, name="a-thread-of-ours")
    idle.start()
    with contextlib.ExitStack() as stack:
        stack.callback(release.set)
        dog = stack.enter_context(Watchdog(0.05, end=lambda code: (codes.append(code), ended.set())))
        dog.beat("making the batch of step 7")
        hung_here(ended)
    idle.join()
    said = capfd.readouterr().err
    assert codes == [watchdog.EXIT_CODE]
    assert "rank 0 of 1: no sign of life for" in said
    assert "while making the batch of step 7; it is itself in wait" in said
    assert "in hung_here" in said
    assert "thread a-thread-of-ours:" in said
    assert all(line.startswith("rank 0 of 1: ") for line in said.splitlines())


def test_who_beats_lives():
    codes, over = [], threading.Event()
    with Watchdog(0.6, end=codes.append) as dog:
        for number in range(12):
            dog.beat(f"computing step {number}")
            over.wait(0.1)
    assert codes == []


def test_switched_off_it_starts_no_thread():
    before = threading.active_count()
    with Watchdog(0) as dog:
        dog.beat("computing step 1")
        assert threading.active_count() == before


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/lib/torch/distributed/distributed_c10d.py", "it waits for the other ranks in all_reduce"),
        ("/lib/deepspeed/comm/torch.py", "it waits for the other ranks in all_reduce"),
        ("/home/views.py", "it is itself in all_reduce, /home/views.py:12"),
    ],
)
def test_a_rank_that_waits_for_others_is_told_from_the_one_they_wait_for(path, said):
    code = types.SimpleNamespace(co_filename=path, co_name="all_reduce")
    assert watchdog._where(types.SimpleNamespace(f_code=code, f_lineno=12)) == said

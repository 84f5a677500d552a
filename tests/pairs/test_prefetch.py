"""Batches made ahead come in order, fail in their turn, and end with the loop."""

import threading
from contextlib import closing

import pytest

from mcontriever.pairs.prefetch import prefetch


def test_every_step_comes_once_and_in_order():
    assert list(prefetch(lambda step: step * step, range(3, 9))) == [(step, step * step) for step in range(3, 9)]
    assert list(prefetch(lambda step: step, [])) == []


def test_the_next_is_made_while_this_one_is_worked_on():
    made = [threading.Event() for _ in range(3)]

    def make(step):
        made[step].set()
        return threading.current_thread()

    for step, maker in prefetch(make, range(3)):
        assert maker is not threading.current_thread()
        if step < 2:
            assert made[step + 1].wait(5), "the next one was not begun"


def test_an_error_comes_in_its_turn():
    ahead = prefetch(lambda step: 1 / (2 - step), range(9))
    assert [next(ahead)[0] for _ in range(2)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_a_loop_that_stops_early_leaves_no_thread():
    with closing(prefetch(lambda step: step, range(1000))) as ahead:
        assert next(ahead) == (0, 0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]

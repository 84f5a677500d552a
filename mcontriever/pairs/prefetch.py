"""The next step's batch is made in a thread while this step computes: NumPy lets go of the interpreter in its loops.

One thread and one step ahead, because batches are a pure function of the step: there is no order to keep and nothing
to save. A worker process would spend longer on handing a batch over than on making it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def prefetch(make: Callable[[S], T], steps: Iterable[S]) -> Generator[tuple[S, T], None, None]:
    """Each step with `make(step)`, in order. What `make` raises is raised when its step's turn has come.

    Close the iterator (`contextlib.closing`) where the loop may end before the steps do: it waits for the thread.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        ahead = None
        for step in steps:
            coming = step, pool.submit(make, step)
            if ahead is not None:
                yield ahead[0], ahead[1].result()
            ahead = coming
        if ahead is not None:
            yield ahead[0], ahead[1].result()

"""One shard in, one shard out: many tasks over the cores of this machine, or over a cluster by Ray.

The pools there are wait for ever for a worker that was killed. Here every worker has a pipe of its own: it closes with
the process, at once, and says whose task was lost. Results are small facts; what is large, a task writes to disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, TypeVar, cast

from .artifact import open_artifact
from .errors import ArtifactError, McontrieverError, SettingsError, require

T = TypeVar("T")
R = TypeVar("R")

# Every worker is one core's: libraries that start a thread a core would stand in each other's way.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_ONE_THREAD = dict.fromkeys(_THREADS, "1") | {"TOKENIZERS_PARALLELISM": "false"}
_RAY_TRIES = 3
_listeners: list[Callable[[int], None]] = []


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def tick(count: int) -> None:
    """Called by a function that `run` runs: so much more of its task is done. Over Ray nobody hears it."""
    for listener in _listeners[-1:]:
        listener(count)


def finished(path: Path, kind: str) -> dict[str, Any] | None:
    """The `meta` of a task's artifact if it is there and whole; what is damaged is removed, to be made anew."""
    try:
        return open_artifact(path, kind).meta
    except ArtifactError:
        if path.exists():
            shutil.rmtree(path)
        return None


def slots(address: str, gpus: int = 0) -> int:
    """How many tasks a Ray cluster can do at once, by its CPUs, or by its GPUs where each task takes `gpus` of them."""
    found = _connected(address).cluster_resources()
    return max(1, int(found.get("GPU", 0)) // gpus if gpus else int(found.get("CPU", 1)))


def run(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: int = 1,
    address: str = "",
    gpus: int = 0,
    label: Callable[[T], str] = str,
    progress: Callable[[int, R | None], None] = lambda count, result: None,
) -> list[R]:
    """The function's results for all tasks, in their order, whoever was first.

    `function` is a module's own; one worker is this very process. `progress(count, None)` passes on a `tick` and
    `progress(0, result)` comes after each task. The first error ends all workers and is raised here. With `address`
    the tasks go to that Ray cluster ("auto", host:port, ray://host:port), which must see the same files; each has a CPU
    there, and `gpus`.
    """
    if not tasks:
        return []
    if address:
        return _over_ray(function, tasks, address, gpus, label, progress)
    workers = min(workers, len(tasks))
    if workers > 1:
        return _over_processes(function, tasks, workers, label, progress)
    results = []
    with _telling(lambda count: progress(count, None)):
        for task in tasks:
            results.append(function(task))
            progress(0, results[-1])
    return results


def _over_processes(
    function: Callable[[T], R],
    tasks: Sequence[T],
    workers: int,
    label: Callable[[T], str],
    progress: Callable[[int, R | None], None],
) -> list[R]:
    results: dict[int, R] = {}
    left = iter(range(len(tasks)))
    with contextlib.ExitStack() as crew:
        busy: dict[Connection, tuple[_Worker, int]] = {}
        for number in range(workers):
            worker = crew.enter_context(_Worker(function))
            busy[worker.pipe] = worker, next(left)
            worker.give(tasks[number])
        while busy:
            for pipe in cast("list[Connection]", wait(list(busy))):
                worker, number = busy[pipe]
                try:
                    kind, value = pipe.recv()
                except (EOFError, OSError):
                    raise McontrieverError(f"{label(tasks[number])}: {worker.fate()}") from None
                if kind == "tick":
                    progress(value, None)
                elif kind == "failed":
                    raise value
                else:
                    results[number] = value
                    progress(0, value)
                    number = next(left, -1)
                    if number < 0:
                        del busy[pipe]
                    else:
                        busy[pipe] = worker, number
                        worker.give(tasks[number])
    return [results[number] for number in range(len(tasks))]


class _Worker:
    """A process that serves one function. No fork and no import of the caller's main module: neither is safe."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.pipe, theirs = Pipe()
        paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()}, {os.getpid()})"],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": paths},
            )
        self.give(function)

    def give(self, what: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: the next reading says so
            self.pipe.send(what)

    def fate(self) -> str:
        """What became of the process, after its end of the pipe has closed."""
        code = self._process.wait()
        again = "what was finished is kept: run it again"
        if code >= 0:
            return f"its worker ended with exit code {code} (see above); {again}"
        name = signal.Signals(-code).name
        memory = ", with fewer --workers if memory was short" if name == "SIGKILL" else ""
        return f"its worker was killed ({name}); {again}{memory}"

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self.pipe.close()


def serve(descriptor: int, parent: int) -> None:
    """What a worker process does: take the function, then tasks, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends us and speaks for all
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    pipe = Connection(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError), _telling(lambda count: pipe.send(("tick", count))):
        function = pipe.recv()
        while True:
            pipe.send(_outcome(function, pipe.recv()))


def _end_with(parent: int) -> None:
    """A parent that was killed cannot end its workers, and the next run must not find them still writing."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _outcome(function: Callable[[Any], Any], task: Any) -> tuple[str, Any]:
    try:
        return "done", function(task)
    except (McontrieverError, MemoryError) as error:
        return "failed", error
    except Exception as error:
        if type(error).__module__ == "builtins" and isinstance(error, OSError):
            return "failed", error
        # many a library's exception cannot be sent; the traceback would be lost in any case
        return "failed", RuntimeError(f"in a worker:\n{traceback.format_exc()}")


@contextlib.contextmanager
def _telling(listener: Callable[[int], None]) -> Iterator[None]:
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()


@dataclass(frozen=True)
class _Whole:
    """Keeps Arrow from taking a result apart into columns, where it would lose its types."""

    content: tuple[str, Any]


def _connected(address: str) -> Any:
    ray = require("ray", "ray", "running over a Ray cluster")
    os.environ.setdefault("RAY_task_oom_retries", str(_RAY_TRIES))
    if not ray.is_initialized():  # from then on until the process ends, as connecting takes seconds
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())
            raise SettingsError(f"no Ray cluster at {address!r} ({why})") from error
    return ray


def _over_ray(
    function: Callable[[T], R],
    tasks: Sequence[T],
    address: str,
    gpus: int,
    label: Callable[[T], str],
    progress: Callable[[int, R | None], None],
) -> list[R]:
    ray = _connected(address)
    data = require("ray.data", "ray", "running over a Ray cluster")
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what went wrong is raised

    def outcome(row: dict[str, Any]) -> dict[str, Any]:
        os.environ.update(_ONE_THREAD)  # this process is Ray's
        return row | {"outcome": _Whole(_outcome(function, tasks[row["id"]]))}

    # by default a task whose worker was killed is started anew for ever
    tries = {"max_retries": _RAY_TRIES}
    dataset = data.range(len(tasks), override_num_blocks=len(tasks))
    results: dict[int, R] = {}
    try:
        for row in dataset.map(
            outcome, num_cpus=1, num_gpus=gpus or None, ray_remote_args_fn=lambda: tries
        ).iter_rows():
            kind, value = row["outcome"].content
            if kind == "failed":
                raise value
            results[int(row["id"])] = value
            progress(0, value)
    except ray.exceptions.RayError as error:
        lost = [label(task) for number, task in enumerate(tasks) if number not in results]
        why = " ".join(str(error).split())[:300]
        raise McontrieverError(f"Ray gave up; {len(lost)} tasks are not done, such as {lost[0]}: {why}") from error
    return [results[number] for number in range(len(tasks))]

"""Tasks over processes: results in order, and every way a worker can end is an error that names the task."""

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest
from own_network import in_own_network

from mcontriever import workers
from mcontriever.errors import DataError, McontrieverError, MissingExtra

# Workers import the function from its module, so it must lie in one that they can find.
MODULE = """
import os, signal, time
from pathlib import Path
from mcontriever.errors import DataError
from mcontriever.workers import tick

def slower_first(number):
    time.sleep(0.05 * (3 - number) if number < 3 else 0)
    tick(number)
    return number * number

def threads(number):
    return os.environ.get("RAYON_NUM_THREADS"), os.environ.get("TOKENIZERS_PARALLELISM"), os.getpid()

def bad(number):
    if number == 2:
        raise DataError("file.jsonl:7: not JSON")
    return number

def full(number):
    raise OSError(28, "No space left on device", "/disk/file")

def bug(number):
    return {}["missing"]

def killed(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number

def killed_once(task):
    number, mark = task
    if number == 1 and not os.path.exists(mark):
        Path(mark).write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return number

def leaves(number):
    os._exit(3)

def long(folder):
    Path(folder, str(os.getpid())).write_text("")
    time.sleep(60)
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    (tmp_path / "jobs_of_the_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("jobs_of_the_test")
    del sys.modules["jobs_of_the_test"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(jobs, count):
    heard = []
    results = workers.run(
        jobs.slower_first, range(5), workers=count, progress=lambda ticks, result: heard.append((ticks, result))
    )
    assert results == [0, 1, 4, 9, 16]
    assert sorted(ticks for ticks, result in heard if result is None) == [0, 1, 2, 3, 4]
    assert sorted(result for _, result in heard if result is not None) == results
    assert workers.run(jobs.slower_first, [], workers=count) == []


def test_each_worker_is_one_cores_and_no_more_start_than_there_are_tasks(jobs, monkeypatch):
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    found = workers.run(jobs.threads, range(2), workers=8)
    assert {row[:2] for row in found} == {("1", "false")}
    assert os.getpid() not in {row[2] for row in found}
    assert workers.run(jobs.threads, range(2), workers=1)[0][::2] == (None, os.getpid())


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_of_a_task_is_raised_as_it_is(jobs, count):
    with pytest.raises(DataError, match=r"file\.jsonl:7: not JSON"):
        workers.run(jobs.bad, range(9), workers=count)
    with pytest.raises(OSError, match="No space left") as caught:
        workers.run(jobs.full, range(9), workers=count)
    assert (caught.value.errno, caught.value.filename) == (28, "/disk/file")
    with pytest.raises(KeyError if count == 1 else RuntimeError, match="missing"):
        workers.run(jobs.bug, range(9), workers=count)


def test_a_killed_worker_is_an_error_that_names_its_task(jobs):
    words = r"piece 3: its worker was killed \(SIGKILL\); what was finished is kept: run it again, with fewer --workers"
    with pytest.raises(McontrieverError, match=words):
        workers.run(jobs.killed, range(9), workers=2, label=lambda number: f"piece {number}")
    with pytest.raises(McontrieverError, match="0: its worker ended with exit code 3|1: its worker ended with"):
        workers.run(jobs.leaves, range(2), workers=2)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_worker_outlives_an_ended_run(jobs, tmp_path, sent, code):
    pids = tmp_path / "pids"
    pids.mkdir()
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from mcontriever.errors import run_command\nfrom mcontriever.workers import run\n"
        f"import jobs_of_the_test as jobs\n"
        f"sys.exit(run_command(lambda argv: run(jobs.long, [{str(pids)!r}] * 4, workers=2), []))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    until = time.monotonic() + 30
    while len(list(pids.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    children = [int(path.name) for path in pids.iterdir()]
    assert len(children) == 2
    parent.send_signal(sent)
    assert parent.wait(10) == code
    assert parent.stderr.read().decode().count("Traceback") == 0
    until = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, children))


def test_ray_is_an_extra(jobs, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'mcontriever\[ray\]'"):
        workers.run(jobs.bad, range(2), address="auto")


@pytest.mark.slow
def test_over_ray_the_results_are_the_same_and_a_killed_worker_is_replaced(jobs, tmp_path):
    pytest.importorskip("ray")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import jobs_of_the_test as jobs
import ray
from mcontriever.errors import DataError, McontrieverError
from mcontriever.workers import run

def main():
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    assert run(jobs.slower_first, range(5), address="local") == [0, 1, 4, 9, 16]
    assert [row[:2] for row in run(jobs.threads, range(2), address="local")] == [("1", "false")] * 2
    assert run(jobs.killed_once, [(n, {str(tmp_path / "mark")!r}) for n in range(4)], address="local") == [0, 1, 2, 3]
    for function, kind, words in (
        (jobs.bad, DataError, "file.jsonl:7: not JSON"),
        (jobs.killed, McontrieverError, "Ray gave up; "),
    ):
        try:
            run(function, range(4), address="local", label=lambda number: f"piece {{number}}")
        except kind as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)

main()
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run(in_own_network([sys.executable, "-c", script]), check=True, timeout=240, env=env)
    assert (tmp_path / "mark").exists()

"""Killed anywhere, as often as you like, and started again, a run is the run that was never killed: bit for bit.

Two real ranks, every engine, with accumulation, dropout, a queue and a momentum encoder. SIGKILL strikes at random
moments and inside the writing of a state; disks fill up and files rot. `--kills 50` tries harder than `make test`.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import fault_worker
import pytest
import torch
from launching import deepspeed_config, free_port, make_recipe
from safetensors.torch import load_file

from mcontriever.training import state

pytestmark = pytest.mark.slow

ENGINES = ["plain", "zero0", "zero1", "zero2", "zero2_offload", "zero3"]
STEPS = 12
CHANGES = {"steps": STEPS, "saving.every": 2, "batch.accumulation": 2, "unlabelled.comparable": 0.5}
CHANGES |= {"model.layers": 2, "model.hidden": 32, "model.intermediate": 64, "optim.lr": 1e-3, "optim.warmup": 3}
CHANGES |= {"objective.queue_size": 20, "objective.momentum": 0.9}


@pytest.fixture(scope="module")
def forks():
    """All ranks are forked from one process that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fault_worker"])
    with pytest.MonkeyPatch.context() as patch:  # the server passes over, in silence, what it cannot find on its path
        patch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield context


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("faults"), ["en", "sw"], CHANGES)


@dataclasses.dataclass
class Run:
    """One run, in as many jobs as it takes."""

    forks: object
    recipe: pathlib.Path
    output: pathlib.Path
    engine: str
    world: int = 2

    def start(self, fault=(), *options):
        argv = ["--recipe", str(self.recipe), "--output", str(self.output), *options]
        if self.engine != "plain":
            argv += deepspeed_config(self.engine)
        port = free_port()
        job = [
            self.forks.Process(
                target=fault_worker.rank_main,
                args=(number, self.world, port, argv, f"{self.output}.log", fault),
            )
            for number in range(self.world)
        ]
        for rank in job:
            rank.start()
        return job

    def ends(self, fault=(), *options):
        """Exit codes of a job that ends by itself; where a rank dies, the others are killed, as a launcher does."""
        job = self.start(fault, *options)
        until = time.monotonic() + 180
        while any(rank.is_alive() for rank in job):
            if time.monotonic() > until:
                kill(job)
                raise AssertionError(self.said())
            if any(rank.exitcode == -signal.SIGKILL for rank in job):
                kill(job)
            time.sleep(0.01)
        return [rank.exitcode for rank in job]

    def computed(self):
        path = pathlib.Path(f"{self.output}.losses")
        return path.read_text().count("\n") if path.exists() else 0

    def wait_for_steps(self, job, count):
        before = self.computed()
        while self.computed() < before + count and all(rank.is_alive() for rank in job):
            time.sleep(0.002)

    def said(self):
        return pathlib.Path(f"{self.output}.log").read_text()

    def losses(self):
        """Step to what was computed in it; a step computed again must have come out as before."""
        told = {}
        for line in pathlib.Path(f"{self.output}.losses").read_text().splitlines():
            step, numbers = line.split(" ", 1)
            assert told.setdefault(int(step), numbers) == numbers, f"step {step} came out otherwise"
        return told

    def tensors(self):
        parts, _ = state.load(state.path_of(self.output, STEPS))
        parts["model"] = load_file(self.output / "model" / "model.safetensors")
        return {f"{part}.{name}": value for part, named in parts.items() for name, value in named.items()}


def kill(job, gap=0.0):
    for rank in job:
        rank.kill()
        time.sleep(gap)
    for rank in job:
        rank.join()


def assert_same(run, whole):
    assert run.losses() == whole.losses()
    want, got = whole.tensors(), run.tensors()
    assert want.keys() == got.keys()
    assert [name for name in want if not torch.equal(want[name], got[name])] == []


@pytest.fixture(scope="module")
def whole(forks, recipe):
    """Runs that nobody killed, by engine."""
    known = {}

    def of(engine):
        if engine not in known:
            run = known[engine] = Run(forks, recipe, recipe.parent / f"whole-{engine}", engine)
            assert run.ends() == [0, 0], run.said()
            assert len(run.losses()) == STEPS
        return known[engine]

    return of


@pytest.fixture
def run(forks, recipe, tmp_path):
    return lambda engine, world=2: Run(forks, recipe, tmp_path / "run", engine, world)


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_anywhere_it_goes_on_bit_for_bit(engine, whole, run, request):
    kills, seed = request.config.getoption("--kills", 2), request.config.getoption("--kills-seed", 0)
    chance, expected, survived = random.Random(f"{engine} {seed}"), whole(engine), 0
    where = []
    while survived < kills:
        one = run(engine)
        for path in (one.output, *one.output.parent.glob("run.*")):  # a run that has ended is followed by a fresh one
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        ended = False
        while survived < kills and not ended:
            if survived % 2:
                job = one.start()
                saved = max((step for step, _ in state.states(one.output)), default=0)
                one.wait_for_steps(job, chance.randrange(STEPS - saved))  # by the clock, most would strike at the start
                time.sleep(chance.uniform(0, 0.1))
                alive = [rank.is_alive() for rank in job]
                assert all(rank.exitcode in (None, 0) for rank in job), one.said()
                chance.shuffle(job)
                kill(job, gap=chance.choice([0, 0, 0.02]))
                survived += all(alive)
            else:
                codes = one.ends(("write", chance.randint(1, 57), chance.random()))
                assert codes == [0, 0] or -signal.SIGKILL in codes, one.said()  # else it would be tried for ever
                survived += -signal.SIGKILL in codes
            ended = (one.output / "model").exists()
            where.append(max((step for step, _ in state.states(one.output)), default=0))
        if not ended:
            assert one.ends() == [0, 0], one.said()
        assert_same(one, expected)
    sys.stderr.write(f"\n{engine}: {survived} kills survived, after states {where}\n")


@pytest.mark.parametrize("harm", ["flipped byte", "empty manifest"])
def test_a_rotten_newest_state_is_named_and_the_one_before_it_goes_on(harm, whole, run):
    expected, one = whole("zero1"), run("zero1")
    shutil.copytree(expected.output, one.output)
    shutil.rmtree(one.output / "model")
    shutil.copy(f"{expected.output}.losses", f"{one.output}.losses")
    newest = state.path_of(one.output, STEPS)
    weights, manifest = newest / "weights.safetensors", newest / "manifest.json"
    content = weights.read_bytes()
    if harm == "flipped byte":
        weights.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    else:
        manifest.write_text("")
    assert one.ends() == [0, 0], one.said()
    assert f"not resuming from {newest.name}: " in one.said()
    assert f"resuming after step {STEPS - 2} from" in one.said()
    assert_same(one, expected)


def test_a_full_disk_ends_the_job_and_harms_nothing(whole, run):
    expected, one = whole("zero2"), run("zero2")
    codes = one.ends(("full", 30))
    assert codes == [1, 1], one.said()
    assert "could not be saved: " in one.said()
    assert "No space left on device" in one.said()
    assert "the one before it is intact" in one.said()
    before = state.states(one.output)
    assert before, "the disk was to fill up later than at the first state"
    assert state.newest(one.output) == (before[0][1], [])
    assert one.ends() == [0, 0], one.said()
    assert_same(one, expected)


def test_one_rank_is_asked_to_leave_and_all_do(whole, run):
    expected, one = whole("zero3"), run("zero3")
    job = one.start()
    losses = pathlib.Path(f"{one.output}.losses")
    while not losses.exists() or losses.read_text().count("\n") < 6:
        time.sleep(0.005)
    os.kill(job[1].pid, signal.SIGUSR1)
    for rank in job:
        rank.join(60)
    assert [rank.exitcode for rank in job] == [75, 75], one.said()
    assert one.said().count("stopped by a signal to another rank; the state after step") == 1
    assert one.ends() == [0, 0], one.said()
    assert_same(one, expected)


@pytest.fixture(scope="module")
def skipping(forks, recipe):
    """Runs in which rank 1 saw no number in step 5, by engine."""

    def of(engine):
        run = Run(forks, recipe, recipe.parent / f"skipping-{engine}", engine)
        if not run.output.exists():
            options = ["--guard.on_nan", "skip", "--saving.keep", "10"]
            assert run.ends(("poison", 5), *options) == [0, 0], run.said()
        return run

    return of


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_that_one_rank_refuses_changes_nothing_in_any_engine(engine, skipping):
    """Its gradient is a good one, so it must have been let go of."""
    run, plain = skipping(engine), skipping("plain")
    assert run.said().count("step 5 skipped (1 so far): the loss became nan; its batch is in") == 1
    assert (run.output / "bad-batch-00000005" / "pairs.jsonl").is_file()
    want, got = plain.tensors(), run.tensors()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert state.load(state.path_of(run.output, 6))[1]["guard"]["discarded"] == 1


def test_a_rank_that_hangs_is_told_from_those_that_wait_for_it(run):
    one = run("zero2")
    assert one.ends(("hang", 4), "--guard.hang_seconds", "4") == [1, 1], one.said()
    said = one.said()
    assert "rank 1 of 2: no sign of life for" in said
    assert "while making the batch of step 4; it is itself in wait" in said
    assert "in hung" in said
    assert "while computing step 4; it waits for the other ranks in all_reduce" in said
    assert "rank 1 of 2: thread MainThread:" in said


@pytest.mark.parametrize(("engine", "world"), [("plain", 2), ("zero3", 1)])
def test_other_ranks_or_another_engine_go_on_and_say_what_stays(engine, world, whole, run):
    before, one = whole("zero1"), run(engine, world)
    shutil.copytree(before.output, one.output)
    shutil.rmtree(one.output / "model")
    shutil.rmtree(state.path_of(one.output, STEPS))
    assert one.ends() == [0] * world, one.said()
    ranks = f"{world} rank" + "s" * (world > 1)
    name = "the plain engine" if engine == "plain" else engine
    assert f"written by 2 ranks and zero1, goes on with {ranks} and {name}: weights, moments, queue" in one.said()
    want, got = before.tensors(), one.tensors()
    if world == 2:  # the same dropout; sums are rounded otherwise
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=2e-5)
    else:
        assert not all(torch.equal(want[name], got[name]) for name in want)


def test_a_truncated_shard_is_found_before_the_first_step(recipe, run, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(recipe.parent / "shards", shards)
    largest = max((path for path in shards.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 2)
    one = run("plain")
    assert one.ends((), "--unlabelled.shards", str(shards)) == [1, 1]
    assert largest.name in one.said()
    assert "bytes, its manifest says" in one.said()
    assert not one.output.exists()

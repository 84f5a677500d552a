"""What one rank of the fault-injection tests runs: the real training command, with a fault built in.

Everything heavy is imported here, once, in the process that all ranks are forked from: a job then starts in a moment,
and can be killed often.
"""

import os
import pathlib
import signal
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or deepspeed looks for every other there is

import dataclasses
import time

import deepspeed  # noqa: F401
import jsonargparse  # noqa: F401
import transformers.models.xlm_roberta.modeling_xlm_roberta  # noqa: F401

from mcontriever import artifact, errors, train
from mcontriever.training import loop, micro_batches, watchdog
from mcontriever.training.moco import Moco


def rank_main(number: int, world: int, port: int, argv: list[str], log: str, fault: tuple) -> None:
    """`fault`: () for none, or one of these.

    ("write", N, share): rank 0 dies at the Nth thing that saving does to the disk; ("full", N): it finds the disk full.
    ("poison", N): rank 1 sees no number as the loss of step N; ("hang", N): it never comes back from making its batch.
    """
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    told = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"}
    _tell_losses(pathlib.Path(argv[argv.index("--output") + 1]))
    at_saving = fault[:1] in (("write",), ("full",))
    if fault and number == (0 if at_saving else 1):
        (_strike_at_saving if at_saving else _strike_at_step)(*fault)
    watchdog.OTHERS_SPEAK_SECONDS = 1.0
    sys.argv = ["train.py", *argv]
    code = errors.run_command(train.main)
    os._exit(code)


def _tell_losses(output: pathlib.Path) -> None:
    """Every step that is ever computed leaves its loss and its norm, to the last bit."""
    real, seed, step = loop.train_step, loop._seed_step, []

    def seeded(*given: int) -> None:
        step[:] = [given[1]]
        seed(*given)

    def stepped(*given):
        result = real(*given)
        with (output.parent / f"{output.name}.losses").open("a") as stream:
            numbers = result.loss, result.gradient_norm, result.query_std, result.key_std
            stream.write(" ".join([str(step[0]), *map(float.hex, numbers)]) + "\n")
        return result

    loop._seed_step, loop.train_step = seeded, stepped


def _strike_at_step(what: str, at: int) -> None:
    learn, drawn, seed, steps = Moco.learn, micro_batches.drawn, loop._seed_step, []

    def seeded(*given: int) -> None:
        steps.append(given[1] + 1)
        seed(*given)

    def learned(self, engine, batches):
        seen = learn(self, engine, batches)
        return dataclasses.replace(seen, means=seen.means * float("nan")) if steps[-1] == at else seen

    def hung(step, **rest):
        if step + 1 == at:
            time.sleep(600)
        return drawn(step, **rest)

    loop._seed_step = seeded
    if what == "poison":
        Moco.learn = learned
    else:
        micro_batches.drawn = hung


def _strike_at_saving(what: str, at: int, share: float = 0.5) -> None:
    """Count what saving does to the disk, and strike at number `at`."""
    seen = []

    def strike() -> bool:
        seen.append(1)
        return len(seen) == at

    def die(path: pathlib.Path | None = None) -> None:
        if path is not None and path.is_file():  # the kernel had written a part
            os.truncate(path, int(path.stat().st_size * share))
        os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(function):
        def called(path, *rest, **named):
            ours = "state-" in str(path)
            if ours and what == "full" and strike():
                raise OSError(28, "No space left on device", str(path))
            result = function(path, *rest, **named)
            if ours and what == "write" and strike():
                die(path)
            return result

        return called

    artifact.save_tensors = wrapped(artifact.save_tensors)
    artifact._sync = wrapped(artifact._sync)
    artifact._publish = wrapped(artifact._publish)

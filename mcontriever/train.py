"""The training entry: `deepspeed mcontriever/train.py`, the same under torchrun, or `python -m mcontriever.train`."""

from __future__ import annotations

import os
import pathlib
import sys
import time

if not __package__:
    # Started as a file, Python puts this folder first on the path: our modules would shadow others, and `mcontriever`
    # itself would not be found.
    _here = pathlib.Path(__file__).resolve().parent
    sys.path[:] = [str(_here.parent)] + [entry for entry in sys.path if pathlib.Path(entry or ".").resolve() != _here]
    __package__ = "mcontriever"

from . import allocator
from .errors import McontrieverError, run_command

_OTHERS_WAIT_SECONDS = 10.0


def main(argv: list[str]) -> None:
    """Parse the recipe and run it."""
    # The deepspeed launcher adds --local_rank=N; the environment says the same.
    argv = [word for word in argv if not word.startswith(("--local_rank=", "--local-rank="))]
    others = os.environ.get("RANK", "0") != "0"
    if others and not {"-h", "--help"}.isdisjoint(argv):
        return  # rank 0 shows it
    from . import settings
    from .training import TrainSettings, train
    from .training.plan import Plan
    from .training.signals import StoppedBySignal
    from .training.supervise import report

    try:
        recipe = settings.parse(TrainSettings, argv, prog="mcontriever/train.py", recipes=True)
        if recipe.plan:
            if not others:
                sys.stdout.write("\n".join(Plan.of(recipe).lines()) + "\n")
            return
        report(output=recipe.output)
        train(recipe)
    except StoppedBySignal as stopped:
        report(code=stopped.exit_code)
        if not others:
            sys.stderr.write(f"mcontriever: {stopped}\n")
        raise SystemExit(stopped.exit_code) from stopped
    except McontrieverError as error:
        report(code=error.exit_code)
        if others:
            # Most often rank 0 finds the same, says it, and the launcher ends the others: once is enough. Who is still
            # alive after that is the only one to know.
            time.sleep(_OTHERS_WAIT_SECONDS)
        raise


def entry() -> None:
    """Run, and end the process without the interpreter's own ending.

    DeepSpeed's hooks keep gloo's threads past the end of their group. One that lets go of its last tensor while the
    interpreter ends aborts the process, and a finished run would report a failure.
    """
    try:
        code = run_command(main)
    except SystemExit as asked:
        code = int(asked.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    allocator.restart()
    entry()

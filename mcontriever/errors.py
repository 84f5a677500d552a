"""What can go wrong, said in one line: what was given, what was expected, what to do.

Every error a user can cause derives from `McontrieverError`; anything else that escapes is a bug of ours and keeps its
traceback. `run_command` is the one place where an exception becomes an exit code.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType


class McontrieverError(Exception):
    """Something the user can mend. The message is the whole story; `exit_code` is what the shell sees."""

    exit_code = 1


class UsageError(McontrieverError):
    """The command line itself is wrong: nothing was started."""

    exit_code = 2


class SettingsError(UsageError, ValueError):
    """A recipe, an override or a DeepSpeed file holds an unknown key, a wrong type or a value out of range."""


class DataError(McontrieverError, ValueError):
    """Input data is missing, empty or malformed; the message carries `file:line` where there is one."""


class ArtifactError(McontrieverError):
    """A folder on disk is incomplete, damaged, of another kind, or does not fit the one it is used with."""


class MissingExtra(McontrieverError, ImportError):
    """An optional dependency is not installed; the message is the `pip install` line that mends it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A half-sentence naming the nearest known name, or all of them when none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, telling "not installed" (an extra is named) from "installed but broken"."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # installed but broken: the real cause must be seen
        raise MissingExtra(f"{purpose} needs {module}: pip install 'mcontriever[{extra}]'") from error


def run_command(main: Callable[[list[str]], object], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main` and return its exit code: 0, 1 failure, 2 usage, 130 interrupted.

    A user's error is one line on standard error. `--debug` anywhere on the command line shows the traceback instead.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        main(arguments)
        sys.stdout.flush()
    except McontrieverError as error:
        if debug:
            raise
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted; nothing half-written was kept as whole, run it again to go on", 130)
    except BrokenPipeError:  # `mcontriever search … | head`: the reader has gone, which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, MemoryError) as error:
        if debug:
            raise
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        what = error.strerror if isinstance(error, OSError) else "out of memory"
        return _complain(f"{where}{what or error}; nothing half-written was kept as whole", 1)
    return 0


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"mcontriever: error: {' '.join(message.split())}\n")
    return code

"""Settings of glibc's allocator that only count before a process starts, so the heavy commands start themselves anew.

By default every large tensor is asked of the system and given back to it, and each of its pages is cleared and faulted
in again by the next operation. These settings keep what was freed for the next one. The command is replaced in place
(exec): the same process, arguments, pipes and parent, which launchers, Ctrl-C and `supervise` go by.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

MARK = "MCONTRIEVER_ALLOCATOR"
"""Environment: "set" once it was done; "off", by the user, leaves the allocator alone."""
SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),  # smaller pieces come from the heap, which is kept …
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),  # … until so much of it is free at its end
    "MALLOC_TOP_PAD_": str(256 << 20),  # and grows by as much
}
# Those before refuse so large a threshold, and then no longer adapt their own: slower than nothing.
_FIRST_GLIBC = (2, 35)


def restart(*, anything: bool = False) -> None:
    """Replace this process by itself with the settings, once, unless there is a reason not to.

    With `anything` also a program that is none of our commands: only its own author may say so.
    """
    if why_not() or not (anything or _is_command()):
        return
    environment = {**os.environ, **SETTINGS, MARK: "set"}
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError as error:  # it goes on, only slower; doctor tells
        os.environ[MARK] = f"failed: {error.strerror}"


def why_not() -> str:
    """Why a command would not start anew with the settings, for a person to read; empty if it would."""
    if mark := os.environ.get(MARK):
        return {"set": "done already", "off": f"{MARK}=off in the environment"}.get(mark, f"{MARK}={mark}")
    if own := _chosen_by_user():
        return f"{own} in the environment"
    if not _is_glibc():
        return "the C library is not glibc"
    if _glibc_version() < _FIRST_GLIBC:
        return "glibc older than 2.35"
    return "" if sys.executable and sys.orig_argv else "this Python does not know how it was started"


def _chosen_by_user() -> str:
    names = [name for name in sorted(os.environ) if name in SETTINGS or name == "MALLOC_CONF"]
    if "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        names.append("GLIBC_TUNABLES")
    if any(word in os.environ.get("LD_PRELOAD", "") for word in ("malloc", "hoard")):  # jemalloc, tcmalloc, mimalloc
        names.append("LD_PRELOAD")
    return ", ".join(names)


def _is_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):  # macOS, musl, Windows
        return False


def _glibc_version() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", os.confstr("CS_GNU_LIBC_VERSION") or "")))


def _is_command() -> bool:
    """Whether this process is one of our commands: a program of somebody else's must not be started a second time."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if not file:
        return False
    path = Path(file)
    return path.name == "mcontriever" or (
        path.resolve().parent == Path(__file__).resolve().parent and path.name in ("__main__.py", "train.py")
    )

"""`mcontriever doctor`: what this machine has, what is chosen for it and why, and the line that mends what is missing.

Every line comes from looking or trying, never from what should be there. Only what nothing works without is broken, and
ends the command with an error; all else is said and left.
"""

from __future__ import annotations

import importlib.metadata
import operator
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import allocator
from .errors import McontrieverError, MissingExtra
from .version import __version__

_CPUINFO = Path("/proc/cpuinfo")
_UNITS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
_TOLERANCE = 1e-5
# What our own package asks for looks like this: a name, versions, perhaps an extra; never another condition.
_ASKED = re.compile(r"""(?P<name>[\w.-]+)(\[.*?\])?(?P<versions>[^;]*)(;\s*extra\s*==\s*["'](?P<extra>[\w.-]+)["'])?""")
_COMPARED = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
_INSTALLED_APART = {"cpu", "gpu", "dev"}  # FAISS has a line of its own; users need no developers' tools


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """Say what this machine has, which kernels are chosen for it and why, and what mends what is missing."""


@dataclass(frozen=True)
class Finding:
    """One line: what was found, and the command or advice that mends it if there is need."""

    name: str
    said: str
    mend: str = ""
    broken: bool = False

    def lines(self) -> list[str]:
        """For the terminal."""
        first = f"{self.name:<13} {'BROKEN: ' if self.broken else ''}{self.said}"
        return [first, f"{'':<13} → {self.mend}"] if self.mend else [first]


class Broken(McontrieverError):
    """Something is missing or wrong that nothing works without."""


def doctor(settings: DoctorSettings) -> None:
    """Look at everything, say it, and fail if something needed is broken."""
    found: list[Finding] = []
    for check in CHECKS:
        for finding in _survived(check):
            found.append(finding)
            sys.stdout.write("\n".join(finding.lines()) + "\n")
            sys.stdout.flush()
    broken = [finding.name for finding in found if finding.broken]
    if broken:
        raise Broken(f"broken: {', '.join(broken)}; see above what mends it")


def _survived(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check's findings; where it fails, that is what was found, and broken if nothing works without it."""
    try:
        yield from check()
    except Exception as error:  # whatever it is: a doctor who dies of the illness helps nobody
        name = check.__name__.removeprefix("check_")
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        needed = check in NEEDED
        yield Finding(name, said if needed else f"could not be looked at: {said}", broken=needed)


def check_versions() -> Iterator[Finding]:
    """Ours, and what it runs on."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield Finding("mcontriever", f"{__version__}, Python {platform.python_version()}, {system}")


def check_packages() -> Iterator[Finding]:
    """Whether what our package asks for is installed, extra by extra, in versions it can use."""
    try:
        said = importlib.metadata.metadata("mcontriever")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "unknown: mcontriever runs from its source and is not installed", "pip install -e .")
        return
    wanting = _wanting("")
    if wanting:
        yield Finding("packages", f"needed, but {', '.join(wanting)}", "pip install --upgrade mcontriever", broken=True)
    else:
        yield Finding("packages", "all that is needed is installed")
    for extra in said.get_all("Provides-Extra") or []:
        if extra not in _INSTALLED_APART and (wanting := _wanting(extra)):
            yield Finding(f"extra {extra}", ", ".join(wanting), f"pip install 'mcontriever[{extra}]'")


def _wanting(extra: str) -> list[str]:
    """What an extra asks for (the core: "") and is missing or of another version."""
    found = []
    for line in importlib.metadata.requires("mcontriever") or []:
        asked = _ASKED.fullmatch(line)
        if not asked or (asked["extra"] or "") != extra or asked["name"] == "mcontriever":
            continue
        try:
            have = importlib.metadata.version(asked["name"])
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{asked['name']} is missing")
            continue
        if not fits(have, asked["versions"]):
            found.append(f"{asked['name']} is {have}, wanted is {asked['versions'].strip()}")
    return found


def fits(have: str, wanted: str) -> bool:
    """Whether a version is one of those wanted (`>=2.40,<2.64`), by its numbers alone."""
    bounds = re.findall(r"([<>=!~]+)\s*([^\s,]+)", wanted)
    return all(_COMPARED[sign](_numbers(have), _numbers(bound)) for sign, bound in bounds)


def _numbers(version: str) -> list[int]:
    numbers = [int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])]
    return (numbers + [0] * 6)[:6]


def check_torch() -> Iterator[Finding]:
    """Its build, and whether that fits the machine."""
    import torch

    build = (
        f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}" if torch.version.hip else ""
    )
    unused = not build and any(Path("/dev").glob("nvidia[0-9]*"))
    yield Finding(
        "torch",
        f"{torch.__version__}, {f'built for {build}' if build else 'built for the CPU alone'}",
        "there is an NVIDIA GPU here: install a CUDA build of torch, README says how" if unused else "",
    )


def check_devices() -> Iterator[Finding]:
    """Where an encoder can run, first what is taken by default."""
    import torch

    from .encoder import resolve_device

    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(number)
        half = "bf16" if facts.major >= 8 else "no bf16, use fp16"
        capability = f"compute capability {facts.major}.{facts.minor}"
        yield Finding(f"cuda:{number}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, {capability}, {half}")
    if torch.backends.mps.is_available():
        yield Finding("mps", "this Mac's GPU, taken only when it is asked for")
    yield Finding("default", f"{resolve_device()} (--device takes another)")


def check_processor() -> Iterator[Finding]:
    """The processor and its units for matrices."""
    name, units = processor(_CPUINFO.read_text(encoding="utf-8") if _CPUINFO.is_file() else "")
    yield Finding("processor", f"{name or platform.processor() or 'unknown'}, {_cores()} cores for this process")
    yield Finding("units", " ".join(units) or "none known of: " + " ".join(_UNITS))


def processor(cpuinfo: str) -> tuple[str, list[str]]:
    """The name and the matrix units that a text like /proc/cpuinfo tells of."""
    facts = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", cpuinfo, flags=re.MULTILINE))
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return facts.get("model name", ""), [unit for unit in _UNITS if unit in flags]


def check_kernels() -> Iterator[Finding]:
    """What computes a layer, by precision, and whether it computes it right."""
    from .encoder import choices, resolve_device

    device = resolve_device()
    for precision in ("fp32", "bf16", "fp16", "int8"):
        if device.type == "cpu" or precision != "int8":
            yield Finding(precision, choices.products(device, precision))
    yield Finding("attention", choices.attends(device))
    error = choices.largest_error(device)
    right = error <= _TOLERANCE
    said = f"packed attention differs from the plain formula by {error:.1e}"
    yield Finding("arithmetic", said, "" if right else "install another build of torch", broken=not right)


def check_threads() -> Iterator[Finding]:
    """How many threads compute, and whether others want the same cores."""
    import torch

    told = os.environ.get("OMP_NUM_THREADS")
    count, cores = torch.get_num_threads(), _cores()
    said = f"{count} of {cores} cores" + (f", as OMP_NUM_THREADS={told} says" if told else "")
    mend = f"more threads than cores make everything slow: OMP_NUM_THREADS={cores}" if count > cores else ""
    yield Finding("threads", said, mend)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores + 0.5:
        yield Finding("load", f"{load:.1f} processes want {cores} cores: times measured now say little")


def check_allocator() -> Iterator[Finding]:
    """Whether memory that was freed is kept for the next operation."""
    if all(os.environ.get(name) == value for name, value in allocator.SETTINGS.items()):
        yield Finding("allocator", "glibc's, set to keep freed memory")
    elif reason := allocator.why_not():
        yield Finding("allocator", f"left alone: {reason}")
    else:
        yield Finding("allocator", "glibc's; the heavy commands set it to keep freed memory and start themselves anew")
        yield Finding(
            "",
            "in a program of your own",
            "export " + " ".join(f"{name}={value}" for name, value in allocator.SETTINGS.items()),
        )


def check_faiss() -> Iterator[Finding]:
    """The search library and its build."""
    from .retrieval.index import faiss_build

    yield _optional("FAISS", faiss_build, "pip install 'mcontriever[cpu]'   (or [gpu], never both)")


def check_deepspeed() -> Iterator[Finding]:
    """The training library: whether it can be imported, not only found."""
    from .training.zero_engine import prepare_deepspeed

    def version() -> str:
        prepare_deepspeed()
        return importlib.metadata.version("deepspeed")

    yield _optional("DeepSpeed", version, "pip install 'mcontriever[train]'")


def _optional(name: str, look: Callable[[], Any], mend: str) -> Finding:
    try:
        return Finding(name, str(look()))
    except MissingExtra:
        return Finding(name, "missing", mend)
    except Exception as error:  # installed but broken: say it, the rest works without
        return Finding(name, f"installed, but fails: {type(error).__name__}: {error}", mend)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


CHECKS = (
    check_versions,
    check_packages,
    check_torch,
    check_devices,
    check_processor,
    check_kernels,
    check_threads,
    check_allocator,
    check_faiss,
    check_deepspeed,
)
NEEDED = (check_torch, check_devices, check_kernels)  # where one of these fails, nothing works

from __future__ import annotations

import importlib.metadata
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path

import pytest
import torch

from mcontriever import allocator, doctor
from mcontriever.cli import main
from mcontriever.doctor import Finding
from mcontriever.encoder import choices, units
from mcontriever.errors import MissingExtra, run_command

INTEL = """processor\t: 0
model name\t: A Processor
flags\t\t: fpu sse2 avx2 avx512f amx_bf16 amx_tile amx_int8 avx512_vnni

processor\t: 1
model name\t: A Processor
flags\t\t: fpu sse2 avx2 avx512f amx_bf16 amx_tile amx_int8 avx512_vnni
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n"


def one(check: Callable[[], Iterator[Finding]], name: str = "") -> Finding:
    found = [finding for finding in check() if not name or finding.name == name]
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions of packages as doctor sees them; absent ones are not installed."""
    versions = {"torch": "2.13.0+cpu", "ray": "2.50"}
    said = Message()
    for extra in ("search", "cpu", "ray", "all"):
        said["Provides-Extra"] = extra
    asked = [
        "torch>=2.6",
        'bm25s>=0.2.13; extra == "search"',
        'ray[data]<2.64,>=2.40; extra == "ray"',
        'faiss-cpu>=1.9; extra == "cpu"',
        'mcontriever[search]; extra == "all"',
        'winonly>=1; sys_platform == "never"',
    ]

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: said)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_an_extra_that_is_missing_comes_with_the_line_that_installs_it(installed: dict[str, str]) -> None:
    core, search = doctor.check_packages()
    assert not core.broken
    assert search == Finding("extra search", "bm25s is missing", "pip install 'mcontriever[search]'")
    installed |= {"bm25s": "0.1", "ray": "2.64"}
    _, search, ray = doctor.check_packages()
    assert search.said == "bm25s is 0.1, wanted is >=0.2.13"
    assert ray.said == "ray is 2.64, wanted is <2.64,>=2.40"
    installed |= {"bm25s": "0.2.13", "ray": "2.63.1"}
    assert len(list(doctor.check_packages())) == 1


def test_what_nothing_works_without_is_broken(installed: dict[str, str]) -> None:
    installed["torch"] = "2.5"
    core = next(iter(doctor.check_packages()))
    assert core.broken
    assert "torch is 2.5, wanted is >=2.6" in core.said
    assert "pip install" in core.mend


def test_all_that_our_package_asks_for_is_understood() -> None:
    file = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].items()
    asked = [*project["dependencies"], *(f'{line}; extra == "{name}"' for name, lines in extras for line in lines)]
    for line in asked:
        found = doctor._ASKED.fullmatch(line)
        assert found, line
        assert not doctor.fits("0", found["versions"]) or not found["versions"].strip(), line


@pytest.mark.parametrize(
    ("have", "wanted", "right"),
    [
        ("2.13.0+cpu", ">=2.6", True),
        ("2.5.1", ">=2.6", False),
        ("6", ">=6.0,<7", True),
        ("7.0.dev1", ">=6,<7", False),
        ("0.19.10", ">=0.19.8,<0.20", True),
        ("5.1rc2", "==5.1", True),
        ("1", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(have: str, wanted: str, right: bool) -> None:
    assert doctor.fits(have, wanted) is right


def test_run_from_source_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", unknown)
    assert "not installed" in one(doctor.check_packages).said


@pytest.mark.parametrize(
    ("text", "name", "units"),
    [
        (INTEL, "A Processor", ["avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8"]),
        (ARM, "", ["asimd", "bf16", "i8mm"]),
        ("", "", []),
    ],
)
def test_the_processor_is_read(text: str, name: str, units: list[str]) -> None:
    assert doctor.processor(text) == (name, units)


def test_kernels_are_chosen_for_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(units, "has_bf16", lambda: False)
    monkeypatch.setattr(units, "has_int8", lambda: False)
    assert choices.products(cpu, "bf16") == "none: this processor has no bf16 units, and load takes fp32 instead"
    assert "no int8 units" in choices.products(cpu, "int8")
    assert choices.products(cuda, "bf16") == "torch's own"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "no oneDNN" in choices.products(cpu, "fp32")
    monkeypatch.setattr(choices.attention, "_varlen", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "needs compute capability 8.0, this GPU has 7.5" in choices.attends(cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "2.10 and newer" in choices.attends(cuda)
    monkeypatch.setattr(choices.attention, "_varlen", lambda *_: object())
    assert "varlen" in choices.attends(cuda)


def test_arithmetic_that_is_wrong_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choices.largest_error(torch.device("cpu")) < 1e-6
    assert not one(doctor.check_kernels, "arithmetic").broken
    right = choices.attention.attend
    monkeypatch.setattr(choices.attention, "attend", lambda qkv, layout: right(qkv, layout) + 1e-3)
    assert one(doctor.check_kernels, "arithmetic").broken


def test_a_gpu_that_torch_cannot_use_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.Path, "glob", lambda self, pattern: iter(["/dev/nvidia0"]))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "CUDA build" in one(doctor.check_torch).mend
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert one(doctor.check_torch).mend == ""
    assert "CUDA 12.8" in one(doctor.check_torch).said


def test_a_mac_s_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "GPU" in one(doctor.check_devices, "mps").said


def test_threads_and_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    assert "OMP_NUM_THREADS=2" in one(doctor.check_threads, "threads").mend
    assert "9.0 processes want 2 cores" in one(doctor.check_threads, "load").said
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 9.0, 9.0))
    assert one(doctor.check_threads).mend == ""


def test_the_allocator_is_told_by_what_the_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*allocator.SETTINGS, allocator.MARK, "GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator, "_is_glibc", lambda: False)
    assert "not glibc" in one(doctor.check_allocator).said
    monkeypatch.setattr(allocator, "_is_glibc", lambda: True)
    assert "MALLOC_TOP_PAD_=" in list(doctor.check_allocator())[-1].mend
    for name, value in allocator.SETTINGS.items():
        monkeypatch.setenv(name, value)
    assert "set to keep" in one(doctor.check_allocator).said


@pytest.mark.parametrize(("module", "name"), [("faiss", "FAISS"), ("deepspeed", "DeepSpeed")])
def test_optional_libraries_missing_or_broken(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise MissingExtra("not there")

    def fails() -> str:
        raise RuntimeError("symbol not found")

    assert doctor._optional(name, missing, "pip install it") == Finding(name, "missing", "pip install it")
    broken = doctor._optional(name, fails, "pip install it")
    assert not broken.broken
    assert "RuntimeError: symbol not found" in broken.said
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    check = doctor.check_faiss if module == "faiss" else doctor.check_deepspeed
    assert one(check).mend.startswith("pip install 'mcontriever[")


def test_the_verb_says_all_and_fails_only_for_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def well() -> Iterator[Finding]:
        yield Finding("one", "there")
        yield Finding("two", "missing", "pip install two")

    def check_third() -> Iterator[Finding]:
        raise RuntimeError("no such thing\nsecond line")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (well,))
    assert run_command(main, ["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["one           there", "two           missing", "              → pip install two"]
    monkeypatch.setattr(doctor, "CHECKS", (check_third, well))
    assert run_command(main, ["doctor"]) == 0
    assert capsys.readouterr().out.startswith("third         could not be looked at: RuntimeError: no such thing\none")
    monkeypatch.setattr(doctor, "NEEDED", (check_third,))
    assert run_command(main, ["doctor"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("third         BROKEN: RuntimeError: no such thing\none")
    assert "broken: third" in captured.err

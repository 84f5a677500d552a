"""Which torch pip would take, asked of a folder of empty wheels that stand in for an index."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    stem = f"{name}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {need}\n" for need in needs
    )
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as packed:
        packed.writestr(f"{stem}.dist-info/METADATA", metadata)
        packed.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.mark.parametrize(
    ("needs", "code"),
    [
        (["plain"], 0),
        (["plain", "nvidia_cublas==1.0"], 3),
        (["plain", 'nvidia_cublas==1.0; platform_system == "Elsewhere"'], 0),
        (["plain", 'nvidia_cublas==1.0; extra == "gpu"'], 0),
        (["plain", "cuda_bindings==1.0"], 3),
        (["absent"], 4),
    ],
)
def test_a_cuda_build_is_known_before_it_is_taken(needs: list[str], code: int, tmp_path: Path) -> None:
    wheel(tmp_path, "torch", "2.13.0", *needs)
    for name in ("plain", "nvidia_cublas", "cuda_bindings"):
        wheel(tmp_path, name, "1.0")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    words = [sys.executable, str(ROOT / "scripts/torch_build.py"), "torch==2.13.0"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("absent" in done.stderr) == (code == 4)


def test_torch_goes_in_before_the_lock() -> None:
    text = (ROOT / "scripts/install.sh").read_text(encoding="utf-8")
    asked, torch, lock = (
        text.index(words) for words in ('torch_build.py "$TORCH"', "pip install $quiet --no-deps ${TORCH_INDEX", "-r ")
    )
    assert asked < torch < lock

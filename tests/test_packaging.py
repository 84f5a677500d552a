"""The wheel a user gets: built from a tree without version control, installed alone, every module imported."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import mcontriever

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = ["pyproject.toml", "README.md", "LICENSE", "mcontriever"]

# Prints {module: file}. `-I -S` leaves site-packages out, so that its link back to the working tree is not followed;
# its folder is then put behind the installed wheel's for the dependencies.
IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
sys.path[:] = [*sys.path, *sys.argv[1:]]
import mcontriever
modules = ["mcontriever"]
for module in pkgutil.walk_packages(mcontriever.__path__, "mcontriever."):
    if not module.name.endswith("__main__"):
        modules.append(module.name)
files = {name: importlib.import_module(name).__file__ for name in modules}
print(json.dumps({"version": mcontriever.__version__, "files": files}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, tree / name)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, tree, cwd=tree)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    return target


def test_the_wheel_holds_everything_in_the_package_folder(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("mcontriever/")}
    there = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "mcontriever").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name[0] != "."
    }
    assert sorted(there - packed) == []
    assert sorted(packed - there) == []
    assert "mcontriever/py.typed" in packed
    assert any(name.startswith("mcontriever/recipes/") and name.endswith(".toml") for name in packed)
    assert any(name.startswith("mcontriever/sample/corpus.") for name in packed)
    assert any(name.startswith("mcontriever/sample/qrels/") for name in packed)


def test_the_wheel_installed_alone_imports_every_module(installed: Path, tmp_path: Path) -> None:
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", IMPORT_EVERYTHING, str(installed), *sorted(libraries)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["version"] == mcontriever.__version__
    elsewhere = {name: file for name, file in answer["files"].items() if not Path(file).is_relative_to(installed)}
    assert elsewhere == {}
    modules = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in (REPOSITORY / "mcontriever").rglob("*.py")
        if path.name != "__main__.py"
    }
    assert set(answer["files"]) == modules


def test_the_wheel_says_what_pyproject_says(installed: Path) -> None:
    [distribution] = importlib.metadata.distributions(path=[str(installed)])
    assert distribution.version == mcontriever.__version__
    assert {"train", "search", "eval", "serve", "cpu", "gpu", "all", "dev"} <= set(
        distribution.metadata.get_all("Provides-Extra") or []
    )
    [command] = distribution.entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("mcontriever", "mcontriever.cli:entry")
    assert "Apache License" in (distribution.read_text("licenses/LICENSE") or "")


def test_the_citation_names_this_version_and_licence() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {mcontriever.__version__}" in citation
    assert "license: Apache-2.0" in citation

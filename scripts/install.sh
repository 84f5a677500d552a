#!/usr/bin/env bash
# Make .venv from lock.txt and leave the stamp .venv/.installed, only when all of it worked.   Usage: make .venv/.installed
#
# torch goes in first, pinned and --no-deps, from TORCH_INDEX if given; then the lock, by hash and with --no-deps, so that
# nothing it holds can pull in a torch of its own choosing; then what torch needs beyond the lock (for a CUDA build its
# nvidia packages, for a CPU build nothing); then DeepSpeed, which is published as source only and imports torch while it
# is built: it compiles nothing, and nothing here needs a compiler.
# On a machine without an NVIDIA device, pip is asked first which torch it would take: a CUDA build is several GB.
# A torch that is already in .venv and fits pyproject.toml is kept: that is how to bring a build of one's own.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${TORCH:?run this through make}"
venv=.venv
stamp=$venv/.installed

fail() {
    echo "install: error: $*" >&2
    exit 1
}
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

quiet=--quiet
[[ ! -t 1 ]] || quiet= # a person is watching: show what pip fetches, and how far it has got

rm -f "$stamp"
started=$SECONDS
export PYTHONNOUSERSITE=1
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export DS_BUILD_OPS=0 # DeepSpeed: build no extension ahead of time, whatever compiler is about

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [[ ! $python ]]; then
        found=$("${PYTHON:-python3}" --version 2>/dev/null) || found="not found"
        fail "Python 3.11 or newer is needed, ${PYTHON:-python3} is $found: make PYTHON=/path/to/python3.11"
    fi
    echo "install: making $venv with $("$python" --version)"
    "$python" -m venv "$venv" >/dev/null || fail "$python cannot make a virtual environment: install its venv and ensurepip modules (python3-venv on Debian and Ubuntu)"
fi

# pip brings its own `packaging`, which can say in an empty .venv whether a torch found there is one that we support.
fits='
import importlib.metadata as m, sys, tomllib
from pip._vendor.packaging.requirements import Requirement
try:
    have = m.version("torch")
except m.PackageNotFoundError:
    sys.exit(1)
with open("pyproject.toml", "rb") as file:
    needs = [Requirement(line) for line in tomllib.load(file)["project"]["dependencies"]]
print(have)
sys.exit(not all(need.specifier.contains(have, prereleases=True) for need in needs if need.name == "torch"))'
chosen=
if have=$("$venv/bin/python" -c "$fits"); then
    echo "install: torch $have is already there and is kept"
else
    if [[ $(uname -s) = Linux && ! ${TORCH_INDEX:-} && ! ${TORCH_ANY:-} ]] && ! compgen -G "/dev/nvidia*" >/dev/null; then
        build=0
        "$venv/bin/python" scripts/torch_build.py "$TORCH" || build=$?
        case $build in
        0) ;;
        3) fail "no NVIDIA device here, but pip would take a CUDA build of $TORCH (several GB): give TORCH_INDEX=ADDRESS, the CPU address that the install selector of PyTorch's site shows, or TORCH_ANY=1 to take it all the same" ;;
        *) fail "pip finds no $TORCH (above is what it said): see to its index, or give TORCH_INDEX=ADDRESS of PyTorch's wheels" ;;
        esac
    fi
    echo "install: $TORCH${TORCH_INDEX:+ from $TORCH_INDEX}"
    pip install $quiet --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
    chosen=$TORCH
fi

echo "install: the locked packages"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
awk '/^[^ #]/ { dropped = /^deepspeed==/ } !dropped' lock.txt >"$scratch/wheels.txt"
awk '/^[^ #]/ { kept = /^deepspeed==/ } kept' lock.txt >"$scratch/sources.txt"
pip install $quiet --require-hashes --no-deps --only-binary :all: -r "$scratch/wheels.txt"
[[ ! $chosen ]] || pip install $quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$chosen"

echo "install: deepspeed and mcontriever itself"
pip install $quiet --require-hashes --no-deps --use-pep517 --no-build-isolation -r "$scratch/sources.txt"
pip install $quiet --no-deps --no-build-isolation --editable .
pip check
date -u +%FT%TZ >"$stamp"
echo "install: done in $((SECONDS - started)) s"

#!/usr/bin/env bash
# Write lock.txt: every dependency of every extra but `gpu`, pinned and hashed.   Usage: make lock [UPGRADE=1]
#
# torch is resolved (so that everything else fits it) and then left out of the file: which build of it a machine wants,
# CPU or some CUDA, is the machine's affair, and a lock can pin only one of them. scripts/install.sh installs it.
# The pins of the present lock.txt are kept where they still fit; UPGRADE=1 lets go of them.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=${TORCH:?run this through make}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# `all` names the project itself, which a lock cannot hold; the FAISS wheel of `gpu` owns the same module as that of `cpu`.
extras=$("${PYTHON:-python3}" -c '
import tomllib
print(",".join(e for e in tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"] if e not in ("all", "gpu")))')

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet pip-tools==7.6.2
echo "$torch" >"$work/torch.txt"
[[ ${UPGRADE:-} ]] || cp lock.txt "$work/lock.txt"
"$work/venv/bin/pip-compile" --quiet --allow-unsafe --generate-hashes --strip-extras --no-header \
    --no-emit-find-links --no-emit-index-url --no-emit-trusted-host \
    --extra "$extras" --constraint "$work/torch.txt" --output-file "$work/lock.txt" pyproject.toml

{
    echo "# Made by scripts/lock.sh (make lock): pyproject.toml with its extras ${extras//,/, },"
    echo "# resolved with $torch on Python $("$work/venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); every file's hash recorded, torch itself left out."
    echo "# Do not edit. scripts/install.sh installs it."
    awk '/^[^ #]/ { dropped = /^torch==/ } !dropped && !/^# The following packages are considered/' "$work/lock.txt"
} >"$work/new.txt"

# A lock is read on other machines: no path, no address, no local build, no CUDA package may have slipped in.
if grep -nE '://|^[^#]*/|==[^ ]*\+|^(nvidia|triton|cuda)|^torch==' "$work/new.txt" | grep -vE 'hash=sha256' >&2; then
    echo "lock.sh: error: the lines above belong to this machine alone; lock.txt was left as it was" >&2
    exit 1
fi
mv "$work/new.txt" lock.txt
echo "lock.txt: $(grep -c '^[^#]*==' lock.txt) packages"

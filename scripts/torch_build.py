"""Would pip take a CUDA build of torch here? Asked by scripts/install.sh before it takes anything.

pip is let resolve it without installing, and is stopped at the first CUDA package that it says it needs: with the
metadata that indexes serve, that is before it fetches any wheel. What it fetches for a CPU build it finds in its cache
afterwards. This runs in a new .venv, which holds pip and nothing else.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

CUDA, UNKNOWN = 3, 4  # exit codes; 0 is a build without CUDA


def main(torch: str) -> int:
    """The exit code for a requirement such as torch==2.13.0; what pip said where it finds none."""
    words = ["install", "--dry-run", "--ignore-installed", "--progress-bar", "off", torch]
    pip = subprocess.Popen(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *words],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in pip.stdout or ():
        said.append(line)
        if re.match(r"(Collecting |Processing \S*/)(nvidia|cuda)[-_]", line):
            pip.kill()
            return CUDA
    if pip.wait():
        sys.stderr.writelines(said)
        return UNKNOWN
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

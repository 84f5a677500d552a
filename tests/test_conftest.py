"""Under `make test` a library that is not there is a failure, and elsewhere a test left out."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "words"), [("1", "1 failed, 1 passed"), ("", "1 passed, 1 skipped")])
def test_a_missing_library_fails_where_all_must_be_there(tmp_path, asked, words):
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "test_x.py").write_text(
        "import pytest\n\n\ndef test_absent():\n    pytest.importorskip('no_such_module')\n\n\n"
        "def test_there():\n    assert pytest.importorskip('json').loads('3') == 3\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"MCONTRIEVER_NO_SKIPS": asked},
    )
    assert words in done.stdout


def test_make_asks_for_them_all():
    makefile = (HERE.parent / "Makefile").read_text(encoding="utf-8")
    assert "\nPYTEST = MCONTRIEVER_NO_SKIPS=1 " in makefile

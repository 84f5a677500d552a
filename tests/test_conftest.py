"""Under `make test` what is left out is a failure, but for a few reasons; elsewhere it is left out."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


LEFT_OUT = """
import pytest

def test_absent():
    pytest.importorskip("no_such_module")

@pytest.mark.skipif(True, reason="by a mark")
def test_marked():
    pass

@pytest.fixture
def device():
    pytest.skip("no device")

def test_by_its_fixture(device):
    pass

@pytest.mark.xfail
def test_known_to_fail():
    assert False

def test_that_asks_much_of_the_machine():
    pytest.skip("this needs `unshare`, which this machine forbids")

@pytest.mark.skipif(True, reason="this processor has no bf16 units")
def test_that_asks_much_of_the_processor():
    pass

def test_there():
    assert pytest.importorskip("json").loads("3") == 3
"""
WHOLE_MODULE = 'import pytest\n\npytest.skip("all of it", allow_module_level=True)\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "words"),
    [("1", "1 failed, 1 passed, 2 skipped, 1 xfailed, 3 errors"), ("", "1 passed, 6 skipped, 1 xfailed")],
)
def test_what_is_left_out_fails_where_all_must_be_there(tmp_path, asked, words):
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "test_x.py").write_text(LEFT_OUT)
    (tmp_path / "test_y.py").write_text(WHOLE_MODULE)
    done = subprocess.run(
        [*PYTEST, "--continue-on-collection-errors", str(tmp_path)],
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

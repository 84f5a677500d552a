"""Where tests find what they share; and under `make test`, where all libraries are there, what is left out fails."""

import os
import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parent))  # what tests of several rooms share

STRICT = os.environ.get("MCONTRIEVER_NO_SKIPS") == "1"
# Which may be left out even so, and why.
ALLOWED = {
    "test_over_ray_the_results_are_the_same_and_a_killed_worker_is_replaced": "a machine may forbid `unshare`",
}


def judged(report, name):
    """The report, a failure now if it says that something was left out that must not be."""
    if STRICT and report.skipped and not hasattr(report, "wasxfail") and name not in ALLOWED:
        report.outcome, report.longrepr = "failed", f"left out, as MCONTRIEVER_NO_SKIPS forbids: {report.longrepr[2]}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    return judged((yield), item.name)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return judged((yield), collector.name)

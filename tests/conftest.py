"""Where tests find what they share; and under `make test`, where all libraries are there, what is left out fails."""

import os
import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parent))  # what tests of several rooms share

STRICT = os.environ.get("MCONTRIEVER_NO_SKIPS") == "1"
# Reasons for which a test may be left out even so: no library mends them, they are the machine's.
ALLOWED = (
    "this processor has no bf16 units",
    "this processor has no int8 units",
    "which this machine forbids",  # `unshare`
    "only glibc has the settings",
)


def judged(report):
    """The report, a failure now if it says that something was left out that must not be."""
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2]
        if not any(words in reason for words in ALLOWED):
            report.outcome, report.longrepr = "failed", f"left out, as MCONTRIEVER_NO_SKIPS forbids: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    return judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return judged((yield))

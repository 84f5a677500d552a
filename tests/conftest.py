"""Where every optional library is there, as under `make test`, a test left out for want of one has not passed."""

from __future__ import annotations

import importlib
import os

import pytest

if os.environ.get("MCONTRIEVER_NO_SKIPS") == "1":
    pytest.importorskip = lambda name, *_, **__: importlib.import_module(name)

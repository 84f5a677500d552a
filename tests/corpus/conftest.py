"""Where the tests here find what they share, and preparing without waiting for the disk."""

import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parent))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("mcontriever.artifact._sync", lambda path: None)  # hundreds of tiny pieces

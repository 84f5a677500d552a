"""The Python of the pages runs as it stands, a page in one piece."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mcontriever import encoder
from mcontriever.corpus import Tokenizer
from mcontriever.encoder import Encoder, ModelSettings

PAGE = (Path(__file__).parents[1] / "docs/encoding.md").read_text(encoding="utf-8")


def test_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    tokenizer = Tokenizer.train(re.findall(r"\w+ \w+ \w+", PAGE), 150)
    shape = ModelSettings(layers=1, hidden=16, heads=2, intermediate=16, max_positions=34)
    path = re.search(r'load\("([^"]+)"\)', code)
    assert path
    encoder.save(Encoder.random(shape, tokenizer), tmp_path / path[1])
    rows = [{"title": "Tea", "text": "tea"}, {"title": "", "text": "coffee " * 500}]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/encoding.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "(2, 2)"
    assert lines[1].startswith("1 texts were longer")
    told = re.search(r"print\(error\)  # (.*)", code)
    assert told
    assert lines[2] == told[1]
    vectors = np.fromfile("vectors.f32", dtype=np.float32).reshape(2, 16)
    assert np.isfinite(vectors).all()

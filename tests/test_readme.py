"""The Python of the README's first screen runs as it stands, over a checkpoint where the quickstart leaves its own."""

import pathlib
import re

from mcontriever import encoder
from mcontriever.corpus import Tokenizer
from mcontriever.encoder import Encoder, ModelSettings

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_first_screen_shows_the_two_commands_and_python_that_runs(tmp_path, monkeypatch, capsys):
    first_screen = "\n".join(README.splitlines()[:40])
    assert "make quickstart" in first_screen
    assert "make test" in first_screen
    code = re.search(r"```python\n(.*?)```", first_screen, re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 12

    tokenizer = Tokenizer.train(re.findall(r"\w+ \w+ \w+", README), 200)
    shape = ModelSettings(layers=1, hidden=16, heads=2, intermediate=16, max_positions=130)
    path = re.search(r'load\("([^"]+)"\)', code)[1]
    encoder.save(Encoder.random(shape, tokenizer), tmp_path / path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]

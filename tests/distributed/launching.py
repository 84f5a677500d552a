"""What the tests here start: a worker under torchrun or alone, and a recipe with shards of the sample to train on."""

import json
import os
import pathlib
import subprocess
import sys

from mcontriever.corpus import PrepareSettings, Tokenizer, prepare

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
SAMPLE = ROOT / "mcontriever" / "sample"


def launch(folder, worker, ranks, *arguments, timeout=600):
    """Run `worker` beside this file on so many ranks; what it is given first is the folder, with a tokenizer in it."""
    folder.mkdir(exist_ok=True)
    lines = (SAMPLE / "corpus.en.jsonl").read_text(encoding="utf-8").splitlines()
    Tokenizer.train([json.loads(line)["text"] for line in lines], 300).save(folder / "tokenizer")
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [*(starter if ranks > 1 else [sys.executable]), str(HERE / worker), str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def make_recipe(place, text, *languages, **values):
    """A file with this recipe; its `{shards}` are the first documents of the sample in these languages."""
    (place / "corpus").mkdir()
    for language in languages:
        lines = (SAMPLE / f"corpus.{language}.jsonl").read_text(encoding="utf-8").splitlines()
        (place / "corpus" / f"corpus.{language}.jsonl").write_text("\n".join(lines[:24]) + "\n", encoding="utf-8")
    prepare(PrepareSettings(corpus=str(place / "corpus"), out=str(place / "shards"), vocab_size=200))
    (place / "recipe.toml").write_text(text.format(shards=place / "shards", **values))
    return place / "recipe.toml"

"""What the tests here start: a worker or the training command, under a launcher or alone, and what they train on."""

import json
import os
import pathlib
import socket
import subprocess
import sys

from mcontriever.corpus import PrepareSettings, Tokenizer, prepare

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
SAMPLE = ROOT / "mcontriever" / "sample"
TRAIN = str(ROOT / "mcontriever" / "train.py")
DEEPSPEED = [sys.executable, str(pathlib.Path(sys.executable).parent / "deepspeed")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
DEEPSPEED_TWO = [*DEEPSPEED, "--num_gpus", "2"]
TORCHRUN_TWO = [*TORCHRUN, "--standalone", "--nproc_per_node", "2"]
RECIPE = {
    "log_every": 1,
    "model.layers": 1,
    "model.hidden": 16,
    "model.heads": 2,
    "model.intermediate": 32,
    "model.max_positions": 66,
    "model.dropout": 0.1,
    "unlabelled.window": 48,
    "objective.queue_size": 16,
    "optim.lr": 1e-2,
    "optim.warmup": 1,
    "batch.size": 8,
    "logging.gemm_share": False,
}


def deepspeed_config(engine="zero1"):
    return ["--deepspeed_config", str(ROOT / "ds_configs" / f"{engine}.json")]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(folder, worker, ranks, *arguments, timeout=600):
    """Run `worker` beside this file on so many ranks; what it is given first is the folder, with a tokenizer in it."""
    folder.mkdir(exist_ok=True)
    lines = (SAMPLE / "corpus.en.jsonl").read_text(encoding="utf-8").splitlines()
    Tokenizer.train([json.loads(line)["text"] for line in lines], 300).save(folder / "tokenizer")
    starter = [*TORCHRUN, "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else [sys.executable]
    command = [*starter, str(HERE / worker), str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def make_recipe(place, languages, changes):
    """A file with RECIPE and these changes; its shards are the first documents of the sample in these languages."""
    (place / "corpus").mkdir()
    for language in languages:
        lines = (SAMPLE / f"corpus.{language}.jsonl").read_text(encoding="utf-8").splitlines()
        (place / "corpus" / f"corpus.{language}.jsonl").write_text("\n".join(lines[:24]) + "\n", encoding="utf-8")
    prepare(PrepareSettings(corpus=str(place / "corpus"), out=str(place / "shards"), vocab_size=200))
    values = RECIPE | {"unlabelled.shards": str(place / "shards")} | changes
    (place / "recipe.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return place / "recipe.toml"

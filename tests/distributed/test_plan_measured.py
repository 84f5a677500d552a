"""--plan against a real run of two ranks: every tensor that is kept, by part, and all of a step at its largest.

What is kept must be as planned to 1 %. The sum is an upper bound, because its parts are not all at their largest at the
same moment: it must not be below what was there, nor more than 25 % above (measured: 3 to 19 %).
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mcontriever.corpus import Tokenizer

pytestmark = pytest.mark.slow

WORKER = pathlib.Path(__file__).with_name("plan_worker.py")
ENGINES = ["plain", "zero0", "zero1", "zero2", "zero2_offload", "zero3"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    sample = pathlib.Path(__file__).parents[2] / "mcontriever" / "sample" / "corpus.en.jsonl"
    texts = [json.loads(line)["text"] for line in sample.read_text(encoding="utf-8").splitlines()]
    Tokenizer.train(texts, 300).save(folder / "tokenizer")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(WORKER)]
    done = subprocess.run(
        [*command, str(folder), ",".join(ENGINES)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ENGINES}


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_kept_is_what_was_planned(measured, engine):
    kept = {name: size for name, size in measured[engine]["kept"].items() if size}
    planned = {part["name"]: part["bytes"] for part in measured[engine]["plan"]["32"]}
    assert {"weights", "moments", "key encoder", "queue"} <= kept.keys()
    assert ("master weights" in kept) == (engine not in ("plain", "zero0"))
    for name, size in kept.items():
        assert planned[name] == pytest.approx(size, rel=0.01), name


@pytest.mark.parametrize("rows", ["32", "2"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_sum_is_an_upper_bound_and_a_near_one(measured, engine, rows):
    content = measured[engine]
    there = sum(content["kept"].values()) + content["moving"][rows]
    planned = sum(part["bytes"] for part in content["plan"][rows])
    assert there <= planned <= 1.25 * there


@pytest.mark.parametrize("engine", ["plain", "zero1", "zero2"])
def test_gradients_before_the_update_are_as_planned(measured, engine):
    """Stage 1 has then let go of all but its share of them; the plan counts what it holds just before."""
    planned = {part["name"]: part["bytes"] for part in measured[engine]["plan"]["2"]}
    expected = planned["gradients"] - (planned["weights"] if engine == "zero1" else 0)
    assert measured[engine]["before the update"]["2"] == pytest.approx(expected, rel=0.05)

"""Every way of starting a run gives the same run, and none needs a compiler, ninja or MPI.

The losses of all of them are compared with the plain engine in one process; tolerance 1e-5.
"""

import json
import os
import subprocess
import sys

import pytest
from launching import (
    DEEPSPEED,
    DEEPSPEED_TWO,
    TORCHRUN,
    TORCHRUN_TWO,
    TRAIN,
    deepspeed_config,
    free_port,
    make_recipe,
)

from mcontriever.training import metrics

pytestmark = pytest.mark.slow

ZERO = deepspeed_config()
TOOLS = ["bash", "cat", "env", "hostname", "ls", "sh", "uname"]
STILL = {"steps": 3, "model.dropout": 0.0, "unlabelled.comparable": 0.5}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("launchers"), ["en", "sw"], STILL)


@pytest.fixture
def environment(tmp_path):
    """A machine with a few tools and nothing to compile with, and a user who has set nothing."""
    tools, extensions = tmp_path / "bin", tmp_path / "extensions"
    tools.mkdir()
    extensions.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    yield kept | {"PATH": str(tools), "TORCH_EXTENSIONS_DIR": str(extensions)}
    assert list(extensions.iterdir()) == [], "an extension was compiled, or a lock left behind"


def start(command, environment, folder):
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=pipe, stdout=pipe, text=True)


def run(command, environment, folder):
    process = start(command, environment, folder)
    out, err = process.communicate(timeout=180)
    return process.returncode, out + err


def losses(output):
    lines = list(metrics.read(output / metrics.NAME))
    assert [line["step"] for line in lines] == [1, 2, 3]
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def expected(recipe, tmp_path_factory):
    """One process, no launcher, the plain engine, as a module."""
    output = tmp_path_factory.mktemp("reference") / "run"
    command = [sys.executable, "-m", "mcontriever.train", "--recipe", str(recipe), "--output", str(output)]
    code, said = run(command, {**os.environ, "OMP_NUM_THREADS": "1"}, output.parent)
    assert code == 0, said
    assert max(losses(output)) > 0.1
    return losses(output)


WAYS = {
    "python-file": [sys.executable, TRAIN],
    "python-file-zero": [sys.executable, TRAIN, *ZERO],
    "deepspeed-file": [*DEEPSPEED_TWO, TRAIN, *ZERO],
    "deepspeed-module": [*DEEPSPEED_TWO, "--module", "mcontriever.train", *ZERO],
    "torchrun-file": [*TORCHRUN_TWO, TRAIN, *ZERO],
    "torchrun-module-plain": [*TORCHRUN_TWO, "-m", "mcontriever.train"],
}


@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_of_starting_is_the_same_run(way, recipe, expected, environment, tmp_path):
    output = tmp_path / "run"
    code, said = run([*WAYS[way], "--recipe", str(recipe), "--output", str(output)], environment, tmp_path)
    assert code == 0, said
    assert losses(output) == pytest.approx(expected, abs=1e-5)
    assert f"{1 if 'python' in way else 2} rank" in said
    assert "Traceback" not in said
    assert (output / "model" / "manifest.json").is_file()
    assert (output / "model" / "deepspeed.json").is_file() == (ZERO[0] in WAYS[way])


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_nodes(launcher, recipe, expected, environment, tmp_path):
    """Started once on each, here twice on this one; no ssh is asked for."""
    (tmp_path / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
    meet = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    if launcher == "torchrun":
        command = [*TORCHRUN, "--nproc_per_node", "1", "--nnodes", "2", *meet]
    else:
        command = [*DEEPSPEED, "--hostfile", str(tmp_path / "hosts"), "--no_ssh", *meet]
    rest = [TRAIN, *ZERO, "--recipe", str(recipe), "--output", str(tmp_path / "run")]
    nodes = [start([*command, "--node_rank", number, *rest], environment, tmp_path) for number in "01"]
    said = ["".join(node.communicate(timeout=180)) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-5)
    assert ["checkpoint written" in text for text in said] == [True, False]


def test_a_hostfile_of_this_machine_alone_and_no_local_rank(recipe, expected, environment, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    here = ["--hostfile", str(tmp_path / "hosts"), "--no_ssh", "--node_rank", "0", "--master_addr", "127.0.0.1"]
    command = [*DEEPSPEED, *here, "--no_local_rank", TRAIN, *ZERO]
    code, said = run([*command, "--recipe", str(recipe), "--output", str(tmp_path / "run")], environment, tmp_path)
    assert code == 0, said
    assert "2 ranks" in said
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-5)


def complaints(said):
    return [line for line in said.splitlines() if "mcontriever: error:" in line]


@pytest.mark.parametrize(
    ("launcher", "mistake", "words"),
    [
        ("deepspeed", "option", "unknown option --optim.lrr; did you mean 'optim.lr'?"),
        ("torchrun", "zero", "unknown key zero_optimisation; did you mean 'zero_optimization'?"),
        ("torchrun", "shards", "no such folder; expected token shards"),
        ("torchrun", "output", "run/model: not a checkpoint"),
    ],
)
def test_a_mistake_is_said_once_for_all_ranks(launcher, mistake, words, recipe, environment, tmp_path):
    options = []
    if mistake == "zero":
        (tmp_path / "zero.json").write_text(json.dumps({"zero_optimisation": {"stage": 1}}))
        options = ["--deepspeed_config", str(tmp_path / "zero.json")]
    elif mistake == "option":
        options = ["--optim.lrr", "1"]
    elif mistake == "shards":
        options = ["--unlabelled.shards", str(tmp_path / "nowhere")]
    else:
        (tmp_path / "run" / "model").mkdir(parents=True)  # only rank 0 looks at what lies there
    starter = DEEPSPEED_TWO if launcher == "deepspeed" else TORCHRUN_TWO
    command = [*starter, TRAIN, "--recipe", str(recipe), "--output", str(tmp_path / "run"), *options]
    code, said = run(command, environment, tmp_path)
    assert code != 0
    assert len(complaints(said)) == 1, said
    assert words in complaints(said)[0]
    assert "[rank" not in said, "a traceback of a rank"
    assert not (tmp_path / "run" / "model" / "config.json").exists()

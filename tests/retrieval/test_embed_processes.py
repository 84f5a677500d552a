"""Embedding by several processes, by ranks, over Ray, through a pipe and killed: the same bytes as by one."""

import os
import subprocess
import sys

import numpy as np
import pytest
from embedding import SHARD, asked, content, rows, write
from own_network import in_own_network

from mcontriever.retrieval import Vectors, embed

pytestmark = pytest.mark.slow


def test_workers_do_the_same(whole, models, corpus, tmp_path):
    embed(asked(models, corpus, tmp_path / "out", workers=2))
    assert content(tmp_path / "out") == content(whole)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
import mcontriever.encoder, mcontriever.encoder.texts  # what a child would else spend its time on
from mcontriever.retrieval import EmbedSettings, embed

def child(settings):
    process = os.fork()  # nothing was computed yet, so there are no threads to lose
    if not process:
        torch.set_num_threads(1)
        embed(settings)
        os._exit(0)
    return process

def run(settings):
    start = time.monotonic()
    assert os.waitpid(child(settings), 0)[1] == 0
    return time.monotonic() - start

checkpoint, corpus, folder = sys.argv[1:]
given = dict(checkpoint=checkpoint, corpus=corpus, shard_passages=1, device="cpu")
lasts = run(EmbedSettings(out=folder + "/whole", **given))
chosen, kills, done = random.Random(0), 0, 0
killed = EmbedSettings(out=folder + "/killed", **given)
while not Path(folder, "killed").exists():
    process = child(killed)
    time.sleep(chosen.uniform(0, lasts))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    kills += 1
    there = len(list(Path(folder).glob("killed.shards/[0-9]*/manifest.json")))
    assert there >= done or Path(folder, "killed").exists()
    done = there
    if kills == 12:
        run(killed)
run(killed)
print(kills)
"""


def test_killed_at_random_points_it_ends_with_the_same_bytes(models, corpus, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", KILLED, str(models / "1"), str(corpus), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, check=False, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) >= 1
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def test_ranks_of_a_launcher_share_the_work(models, corpus, whole, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = [str(models / "1"), str(corpus), str(tmp_path / "out"), "--shard_passages", str(SHARD)]
    command = [*launcher, "-m", "mcontriever", "--local_rank=0", "embed", *given]
    subprocess.run(command, check=True, env=environment, timeout=900)
    assert content(tmp_path / "out") == content(whole)


def test_standard_input_is_read_once(models, corpus, whole, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    given = [str(models / "1"), "-", str(tmp_path / "out"), "--shard_passages", str(SHARD), "--language", "en"]
    command = [sys.executable, "-m", "mcontriever", "embed", *given]
    with corpus.open("rb") as stream:
        subprocess.run(command, check=True, env=environment, timeout=900, stdin=stream)
    one, two = Vectors.open(whole), Vectors.open(tmp_path / "out")
    np.testing.assert_array_equal(one.vectors[:], two.vectors[:])
    assert list(one.passages) == list(two.passages)


DRIVER = """
import sys
from mcontriever.retrieval import EmbedSettings, embed

checkpoint, corpus, out, address = sys.argv[1:]
embed(EmbedSettings(checkpoint=checkpoint, corpus=corpus, out=out, shard_passages=1, ray=address, workers=3))
"""

OVER_RAY = """
import subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

out = sys.argv[-1]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
other = cluster.add_node(num_cpus=3)  # all tasks run there
work = Path(out + ".shards")

def driver():
    return subprocess.Popen([sys.executable, "-c", *sys.argv[1:], cluster.address])

def done():
    return len(list(work.glob("[0-9]*/manifest.json")))

def wait_for(count, running):
    while done() < count:
        assert running.poll() is None
        time.sleep(0.02)

first = driver()
wait_for(2, first)
first.kill()
first.wait()
at_first = done()
second = driver()
wait_for(at_first + 2, second)
cluster.remove_node(other, allow_graceful=False)
Path(out).with_name("killed").write_text(f"{at_first} {done()}")
cluster.add_node(num_cpus=3)
assert second.wait() == 0
cluster.shutdown()
"""


def test_over_ray_a_killed_driver_and_a_killed_node_lose_no_passage(models, tmp_path):
    pytest.importorskip("ray")
    corpus = write(tmp_path / "corpus.en.jsonl", rows(600))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", OVER_RAY, DRIVER, str(models / "1"), str(corpus), str(tmp_path / "out")]
    subprocess.run(in_own_network(arguments), check=True, timeout=300, env=environment)
    with_the_driver, with_the_node = map(int, (tmp_path / "killed").read_text().split())
    assert 2 <= with_the_driver < with_the_node < 600  # else nothing was lost, and nothing is shown
    whole = embed(asked(models, corpus, tmp_path / "whole", shard_passages=1))
    assert content(tmp_path / "out") == content(whole)

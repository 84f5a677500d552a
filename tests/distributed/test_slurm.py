"""scripts/slurm.sh on two "nodes" of this machine: a stand-in for Slurm starts the ranks and passes its signal on."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mcontriever.corpus import PrepareSettings, prepare
from mcontriever.training import metrics

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "slurm.sh"
STEPS = 300
SRUN = """#!{python}
# What srun does: a task a rank with its number, signals to the tasks, and the highest exit code of all.
import os, signal, subprocess, sys
command = sys.argv[1 + [word.startswith("--") for word in sys.argv[1:]].index(False) :]
here = {{"SLURM_LOCALID": "0"}}
ranks = [subprocess.Popen(command, env=os.environ | here | {{"SLURM_PROCID": str(node)}}) for node in range(2)]
signal.signal(signal.SIGUSR1, lambda *_: [rank.send_signal(signal.SIGUSR1) for rank in ranks])
raise SystemExit(max(rank.wait() for rank in ranks))
"""
SCONTROL = """#!/bin/sh
if [ "$1" = requeue ]; then echo "$2" >> {queue}; else echo 127.0.0.1; echo node-b; fi
"""


@pytest.fixture
def cluster(tmp_path):
    """The environment of a job, with the two commands of Slurm on its path."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text.format(python=sys.executable, queue=tmp_path / "queue"))
        (tools / name).chmod(0o755)
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    return kept | {
        "PATH": f"{tools}:/usr/bin:/bin",
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_ID": str(20_000 + os.getpid() % 10_000),  # the port is made from it
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
    }


@pytest.fixture
def options(tmp_path):
    lines = (ROOT / "mcontriever" / "sample" / "corpus.en.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "corpus.en.jsonl").write_text("\n".join(lines[:24]) + "\n", encoding="utf-8")
    prepare(PrepareSettings(corpus=str(tmp_path / "corpus.en.jsonl"), out=str(tmp_path / "shards"), vocab_size=120))
    shape = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "max_positions": 66}
    settings = {
        "unlabelled.shards": tmp_path / "shards",
        "unlabelled.window": 48,
        "objective.queue_size": 16,
        "batch.size": 8,
        "steps": STEPS,
        "log_every": 1,
        "logging.gemm_share": "false",
        "deepspeed_config": ROOT / "ds_configs" / "zero1.json",
        "output": tmp_path / "run",
    } | {f"model.{name}": value for name, value in shape.items()}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def start(cluster, options):
    pipe = subprocess.PIPE
    return subprocess.Popen(["bash", str(SCRIPT), *options], env=cluster, stdout=pipe, stderr=pipe, text=True)


def wait_for(condition, seconds=90):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.1)


def children(process):
    listed = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in listed]


def test_near_its_time_limit_a_job_saves_is_queued_again_and_goes_on(cluster, options, tmp_path):
    lines = tmp_path / "run" / metrics.NAME
    job = start(cluster, options)
    wait_for(lambda: job.poll() is not None or (lines.exists() and lines.read_text().count("\n") > 5))
    assert job.poll() is None, job.communicate()
    (srun,) = children(job)
    os.kill(srun, signal.SIGUSR1)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 75, err
    assert "saved; queued again" in out
    assert (tmp_path / "queue").read_text().split() == [cluster["SLURM_JOB_ID"]]
    (state,) = (tmp_path / "run").glob("state-*")
    assert 0 < int(state.name.rpartition("-")[2]) < STEPS

    again = start(cluster, options)
    out, err = again.communicate(timeout=180)
    assert again.returncode == 0, err
    assert "resuming after step" in err
    assert "2 ranks" in err
    assert [json.loads(line)["step"] for line in lines.read_text().splitlines()] == list(range(1, STEPS + 1))
    assert (tmp_path / "run" / "model" / "manifest.json").is_file()
    assert len((tmp_path / "queue").read_text().split()) == 1


def test_a_job_that_fails_is_not_queued_again(cluster, options, tmp_path):
    job = start(cluster, [*options, "--optim.lrr", "1"])
    _, err = job.communicate(timeout=120)
    assert job.returncode == 2
    assert "unknown option --optim.lrr" in err
    assert not (tmp_path / "queue").exists()


def test_outside_a_job_it_says_how_it_is_started():
    job = start({"PATH": "/usr/bin:/bin"}, [])
    assert "start this with sbatch" in job.communicate()[1]
    assert job.returncode != 0

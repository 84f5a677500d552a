"""Embedding in shards: whoever does them, however often it is stopped, the same bytes; and nothing mixed in silence."""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from mcontriever.artifact import open_artifact
from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import Encoder, ModelSettings, save
from mcontriever.errors import ArtifactError, DataError, SettingsError
from mcontriever.retrieval import EmbedSettings, IndexSettings, Searcher, Vectors, build_index, embed

WORDS = "river mountain lake bridge tower garden market harbour castle forest desert island".split()
COUNT, SHARD = 23, 4


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mcontriever.artifact._sync", lambda path: None)  # dozens of tiny shards


def make_model(folder, tokenizer, seed):
    shape = ModelSettings(layers=1, hidden=16, heads=2, intermediate=32, max_positions=258)
    encoder = Encoder.random(shape, tokenizer, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # fresh weights give all texts about the same vector
        for parameter in encoder.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3, generator=generator)
    save(encoder, folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("models"), Tokenizer.train(WORDS * 9, 36)
    for seed in (1, 2):
        make_model(folder / str(seed), tokenizer, seed)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write(tmp_path_factory.mktemp("corpus") / "corpus.en.jsonl", rows())


@pytest.fixture(scope="module")
def whole(models, corpus, tmp_path_factory):
    """What is made without any stop, by one process."""
    return embed(asked(models, corpus, tmp_path_factory.mktemp("whole") / "out"))


def rows(count=COUNT):
    chosen = random.Random(0)
    return [
        {"_id": f"p{number}", "title": "", "text": " ".join(chosen.choices(WORDS, k=chosen.randint(1, 12)))}
        for number in range(count)
    ]


def write(file, lines):
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def asked(models, corpus, out, model=1, **changes):
    plain = {"checkpoint": str(models / str(model)), "corpus": str(corpus), "out": str(out), "shard_passages": SHARD}
    return EmbedSettings(**(plain | changes))


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def embedded(monkeypatch):
    """How many passages each shard has given to the encoder, as it goes."""
    counts, real = [], Encoder.stream

    def counted(self, passages, **options):
        counts.append(len(passages))
        return real(self, passages, **options)

    monkeypatch.setattr(Encoder, "stream", counted)
    return counts


def test_what_is_made(whole, models, corpus):
    vectors = Vectors.open(whole)
    assert [passage.id for passage in vectors.passages] == [row["_id"] for row in rows()]
    assert {passage.language for passage in vectors.passages} == {"en"}
    from mcontriever.encoder import load

    expected = load(models / "1").encode_passages([row["text"] for row in rows()])
    np.testing.assert_allclose(vectors.vectors, expected, atol=1e-5)
    meta = vectors.artifact.meta
    assert (meta["count"], meta["shards"], meta["languages"]) == (COUNT, [4, 4, 4, 4, 4, 3], {"en": COUNT})
    assert (meta["bad_lines"]["count"], meta["truncated"], meta["dtype"]) == (0, 0, "fp32")
    assert meta["encoder"]["tokenizer"] == load(models / "1").tokenizer.fingerprint
    assert not whole.with_name("out.shards").exists()
    for number in range(6):  # each is an artifact of its own
        open_artifact(whole / f"0000{number}", "vector shard")


def test_rows_are_read_as_from_one_array(whole):
    rows = Vectors.open(whole).vectors
    array = np.asarray(rows)
    assert (rows.shape, rows.dtype, len(rows)) == (array.shape, array.dtype, COUNT)
    for key in (slice(None), slice(3, 9), slice(8, 8), slice(-5, None), slice(0, 23, 5), slice(20, 99)):
        np.testing.assert_array_equal(rows[key], array[key])
    for key in (0, 22, -1, np.array([5, 0, 22, 5]), np.array([], dtype=int), np.arange(COUNT) % 2 == 0):
        np.testing.assert_array_equal(rows[key], array[key])
    with pytest.raises(IndexError):
        rows[COUNT]


def test_few_shards_stay_open(whole, monkeypatch):
    monkeypatch.setattr("mcontriever.retrieval.vectors._OPEN", 2)
    few = Vectors.open(whole)
    np.testing.assert_array_equal(few.vectors[:], Vectors.open(whole).vectors[:])
    assert [each.id for each in few.passages] == [row["_id"] for row in rows()]
    assert len(few._opened) == 2


@pytest.mark.parametrize("seed", range(3))
def test_stopped_anywhere_it_goes_on_and_ends_with_the_same_bytes(whole, models, corpus, tmp_path, monkeypatch, seed):
    real, chosen, calls = Encoder.stream, random.Random(seed), []

    def fails_sometimes(self, passages, **options):
        calls.append(passages[0].id)
        if chosen.random() < 0.4:
            raise RuntimeError("power cut")
        return real(self, passages, **options)

    monkeypatch.setattr(Encoder, "stream", fails_sometimes)
    stops = 0
    for _ in range(50):
        try:
            embed(asked(models, corpus, tmp_path / "out"))
            break
        except RuntimeError:
            stops += 1
    assert stops
    assert len(calls) == 6 + stops  # what a stop costs is one shard
    assert content(tmp_path / "out") == content(whole)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_done_apart_are_put_together_by_the_last(whole, models, corpus, tmp_path, capsys, order):
    out = tmp_path / "out"
    for place, number in enumerate(order):
        assert not out.exists()
        embed(asked(models, corpus, out, shard=f"{number}/3"))
        if place < 2:
            assert f"{2 * (place + 1)} of 6 shards are done" in capsys.readouterr().err
    assert content(out) == content(whole)
    embed(asked(models, corpus, out, shard="0/3"))
    assert "kept" in capsys.readouterr().err


def test_a_part_that_comes_too_late_finds_all_done(whole, models, corpus, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def others_are_done(*_):
        shutil.copytree(whole, out)

    monkeypatch.setattr(sys.modules["mcontriever.retrieval.embed"], "prepare_place", others_are_done)
    embed(asked(models, corpus, out, shard="7/8"))
    assert "kept" in capsys.readouterr().err


def test_a_second_run_of_the_same_waits_and_harms_nothing(models, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("mcontriever.retrieval.workplace._PATIENCE", 0.05)
    out, real = tmp_path / "out", Encoder.stream
    seen = []

    def twice(self, passages, **options):
        if not seen:
            seen.append(passages)
            with pytest.raises(ArtifactError, match="another process is doing part 0 of 1 of the same; wait for it"):
                embed(asked(models, corpus, out))
        return real(self, passages, **options)

    monkeypatch.setattr(Encoder, "stream", twice)
    assert len(Vectors.open(embed(asked(models, corpus, out)))) == COUNT


@pytest.mark.slow
def test_workers_do_the_same(whole, models, corpus, tmp_path):
    embed(asked(models, corpus, tmp_path / "out", workers=2))
    assert content(tmp_path / "out") == content(whole)


def test_a_changed_line_costs_its_shard_only(models, tmp_path, monkeypatch, capsys):
    lines = rows()
    corpus = write(tmp_path / "corpus.en.jsonl", [*lines[:22], "{"])
    with pytest.raises(DataError, match=r"corpus.en.jsonl:23: not JSON.*--bad_lines"):
        embed(asked(models, corpus, tmp_path / "out"))
    assert "what is done so far is kept" in capsys.readouterr().err
    write(corpus, [*lines[:9], lines[9] | {"text": "another text"}, *lines[10:]])
    counts = embedded(monkeypatch)
    embed(asked(models, corpus, tmp_path / "out"))
    assert counts == [4, 3]
    clean = embed(asked(models, corpus, tmp_path / "clean"))
    assert content(tmp_path / "out") == content(clean)
    assert Vectors.open(clean).passages[9].text == "another text"


@pytest.mark.parametrize("change", [{"model": 2}, {"precision": "bf16"}, {"dtype": "fp16"}])
def test_another_encoder_or_setting_is_never_mixed_in(models, corpus, whole, tmp_path, change):
    out = tmp_path / "out"
    embed(asked(models, corpus, out, shard="0/2"))
    with pytest.raises(ArtifactError, match=r"out.shards holds what was begun with another encoder or other settings"):
        embed(asked(models, corpus, out, **change))
    embed(asked(models, corpus, out, overwrite=True, **change))
    assert content(out) != content(whole)
    assert content(out) == content(embed(asked(models, corpus, tmp_path / "clean", **change)))
    with pytest.raises(ArtifactError, match="made from other inputs"):
        embed(asked(models, corpus, out))


def test_other_passages_at_out_are_refused_before_anything_is_embedded(models, corpus, whole, tmp_path, monkeypatch):
    counts = embedded(monkeypatch)
    other = write(tmp_path / "corpus.en.jsonl", rows()[1:])
    with pytest.raises(ArtifactError, match="made from other inputs"):
        embed(asked(models, other, whole))
    embed(asked(models, corpus, whole))
    assert counts == []


def test_bad_lines_are_counted_located_and_limited(models, whole, tmp_path, capsys):
    lines = rows()
    bad = ["{", '{"_id": "x"}', '{"_id": "y", "text": "\\u200b"}']
    corpus = write(tmp_path / "corpus.en.jsonl", [*lines[:6], *bad[:2], *lines[6:], bad[2], ""])
    with pytest.raises(DataError, match=r"^.*/corpus.en.jsonl:7: not JSON.*mend it, or allow some such lines"):
        embed(asked(models, corpus, tmp_path / "out"))
    for limit in (2, 0.05):
        with pytest.raises(DataError, match=rf"3 of 26 lines are bad, --bad_lines allows {limit}; one of them corpus"):
            embed(asked(models, corpus, tmp_path / "out", bad_lines=limit))
    out = embed(asked(models, corpus, tmp_path / "out", bad_lines=3))
    told = capsys.readouterr().err
    assert "3 bad lines of 26 were left out" in told
    assert "corpus.en.jsonl:8: expected text under 'text', got None" in told
    artifact = open_artifact(out, "vectors")
    assert (artifact.meta["bad_lines"]["count"], artifact.meta["count"]) == (3, COUNT)
    written = [json.loads(line)["where"] for line in artifact.file("bad-lines.jsonl").read_text().splitlines()]
    assert written == [f"corpus.en.jsonl:{line}" for line in (7, 8, 26)]
    np.testing.assert_allclose(Vectors.open(out).vectors, Vectors.open(whole).vectors, atol=1e-5)
    assert [each.id for each in Vectors.open(out).passages] == [row["_id"] for row in lines]


@pytest.mark.parametrize(("first", "second"), [(1, 3), (1, 21)])
def test_an_id_that_occurs_twice_is_an_error_whose_cure_is_cheap(models, tmp_path, monkeypatch, first, second):
    lines = rows()
    lines[second] = lines[second] | {"_id": lines[first]["_id"]}
    corpus = write(tmp_path / "corpus.en.jsonl", lines)
    words = rf"corpus.en.jsonl:{second + 1}: the passage id 'p{first}' occurs already at .*corpus.en.jsonl:{first + 1};"
    with pytest.raises(DataError, match=words):
        embed(asked(models, corpus, tmp_path / "out"))
    lines[second] = ""
    write(corpus, lines)
    counts = embedded(monkeypatch)
    embed(asked(models, corpus, tmp_path / "out"))
    assert len(Vectors.open(tmp_path / "out")) == COUNT - 1
    assert sum(counts) <= (COUNT - 1 if second < SHARD else SHARD)


@pytest.mark.parametrize(("dtype", "bound", "size"), [("fp16", 1e-3, 2), ("bf16", 8e-3, 2), ("int8", 0.02, 1)])
def test_smaller_vectors(models, corpus, whole, tmp_path, dtype, bound, size):
    out = embed(asked(models, corpus, tmp_path / "out", dtype=dtype))
    exact, found = Vectors.open(whole).vectors[:], Vectors.open(out)
    errors = np.linalg.norm(found.vectors[:] - exact, axis=1) / np.linalg.norm(exact, axis=1)
    told = found.artifact.meta["rounding"]
    assert 0 < errors.max() <= bound
    assert (told["largest"], told["mean"]) == (pytest.approx(errors.max(), rel=1e-4), pytest.approx(errors.mean()))
    assert (out / "00000/vectors.npy").stat().st_size == 128 + SHARD * 16 * size
    np.testing.assert_array_equal(found.vectors[np.array([20, 3])], found.vectors[:][[20, 3]])
    build_index(IndexSettings(vectors=str(out), out=str(tmp_path / "index"), lexical=False))
    hits = Searcher.open(tmp_path / "index").search("river", k=COUNT)
    assert {hit.id for hit in hits} == {row["_id"] for row in rows()}


def test_a_vector_too_large_for_fp16_is_named(models, corpus, tmp_path, monkeypatch):
    real = Encoder.stream

    def large(self, passages, **options):
        return (
            (chunk, vectors * (1e6 if chunk[0].id == "p4" else 1)) for chunk, vectors in real(self, passages, **options)
        )

    monkeypatch.setattr(Encoder, "stream", large)
    with pytest.raises(ArtifactError, match="passage 'p4' is too large for fp16; take --dtype bf16"):
        embed(asked(models, corpus, tmp_path / "out", dtype="fp16"))


def test_what_is_cut_is_counted(models, tmp_path, capsys):
    corpus = write(tmp_path / "corpus.en.jsonl", [{"_id": "a", "text": "river " * 9000}, {"_id": "b", "text": "lake"}])
    out = embed(asked(models, corpus, tmp_path / "out"))
    assert Vectors.open(out).artifact.meta["truncated"] == 1
    assert "1 of 2 passages were longer than the contract allows, and cut" in capsys.readouterr().err


def test_vectors_replaced_while_they_are_read_are_noticed(models, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("mcontriever.retrieval.vectors._OPEN", 1)
    out = embed(asked(models, corpus, tmp_path / "out"))
    vectors = Vectors.open(out)
    embed(asked(models, corpus, out, model=2, overwrite=True))
    with pytest.raises(ArtifactError, match="was replaced while it was read"):
        vectors.vectors[:]


def test_a_folder_in_the_way_and_no_passages(models, corpus, tmp_path):
    (tmp_path / "out.shards").mkdir()
    (tmp_path / "out.shards" / "mine").write_text("precious")
    with pytest.raises(ArtifactError, match="in the way and not ours"):
        embed(asked(models, corpus, tmp_path / "out"))
    assert (tmp_path / "out.shards" / "mine").read_text() == "precious"
    with pytest.raises(DataError, match="no passage in any line"):
        embed(asked(models, write(tmp_path / "corpus.jsonl", ["", " "]), tmp_path / "none"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shard": "4/4"}, "shard must be I/N"),
        ({"shard": "1"}, "shard must be I/N"),
        ({"corpus": "-", "workers": 2}, "standard input"),
        ({"corpus": "-", "ray": "auto"}, "standard input"),
        ({"bad_lines": -1}, "bad_lines must be 0 or more"),
        ({"dtype": "fp8"}, "dtype"),
        ({"language": "Swahili"}, "language must be a code"),
    ],
)
def test_settings_that_make_no_sense(models, changes, said):
    with pytest.raises(SettingsError, match=said):
        asked(models, **({"corpus": "c", "out": "o"} | changes))


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
    there = len(list(Path(folder).glob("killed.shards/*/manifest.json")))
    assert there >= done or Path(folder, "killed").exists()
    done = there
    if kills == 12:
        run(killed)
run(killed)
print(kills)
"""


@pytest.mark.slow
def test_killed_at_random_points_it_ends_with_the_same_bytes(models, corpus, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", KILLED, str(models / "1"), str(corpus), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, check=False, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) >= 1
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


@pytest.mark.slow
def test_ranks_of_a_launcher_share_the_work(models, corpus, whole, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = [str(models / "1"), str(corpus), str(tmp_path / "out"), "--shard_passages", str(SHARD)]
    command = [*launcher, "-m", "mcontriever", "--local_rank=0", "embed", *given]
    subprocess.run(command, check=True, env=environment, timeout=900)
    assert content(tmp_path / "out") == content(whole)


@pytest.mark.slow
def test_standard_input_is_read_once(models, corpus, whole, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    given = [str(models / "1"), "-", str(tmp_path / "out"), "--shard_passages", str(SHARD), "--language", "en"]
    command = [sys.executable, "-m", "mcontriever", "embed", *given]
    with corpus.open("rb") as stream:
        subprocess.run(command, check=True, env=environment, timeout=900, stdin=stream)
    one, two = Vectors.open(whole), Vectors.open(tmp_path / "out")
    np.testing.assert_array_equal(one.vectors[:], two.vectors[:])
    assert list(one.passages) == list(two.passages)


OVER_RAY = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from mcontriever.retrieval import EmbedSettings, embed

checkpoint, corpus, out = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
other = cluster.add_node(num_cpus=4)
ray.init(address=cluster.address, log_to_driver=False)
work = Path(out + ".shards")

def kill_a_node():
    while len(list(work.glob("*/manifest.json"))) < 2 and not Path(out).exists():
        time.sleep(0.05)
    cluster.remove_node(other, allow_graceful=False)

killer = threading.Thread(target=kill_a_node)
killer.start()
given = dict(checkpoint=checkpoint, corpus=corpus, out=out, shard_passages=1)
settings = EmbedSettings(**given, ray=cluster.address, workers=3)
embed(settings)
killer.join()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_over_ray_a_killed_node_loses_no_passage(models, corpus, tmp_path):
    pytest.importorskip("ray")
    # in a network of its own, as a machine's own address may be one that nothing can be sent to
    alone = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("Ray opens ports to all: this needs `unshare --map-root-user --net`, which this machine forbids")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", OVER_RAY, str(models / "1"), str(corpus), str(tmp_path / "out")]
    subprocess.run([*alone, *arguments], check=True, timeout=900, env=environment)
    whole = embed(asked(models, corpus, tmp_path / "whole", shard_passages=1))
    assert content(tmp_path / "out") == content(whole)

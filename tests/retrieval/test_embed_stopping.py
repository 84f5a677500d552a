"""Embedding stopped anywhere, or done in parts: it ends with the same bytes, and leaves nothing lying about."""

import random
import shutil
import sys

import pytest
from embedding import COUNT, asked, content

from mcontriever.encoder import Encoder
from mcontriever.errors import ArtifactError
from mcontriever.progress import Bar
from mcontriever.retrieval import Vectors, embed
from mcontriever.retrieval.shard import same_number
from mcontriever.retrieval.workplace import locked, watched


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mcontriever.artifact._sync", lambda path: None)  # dozens of tiny shards


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


@pytest.mark.parametrize("removed", [0, 2])
def test_a_run_killed_while_it_tidied_up_leaves_nothing_after_the_next(models, corpus, tmp_path, monkeypatch, removed):
    out, real = tmp_path / "out", shutil.rmtree

    def dies(folder, **options):
        if "done-" in str(folder) and "partial" not in str(folder):
            for shard in sorted(folder.iterdir())[:removed]:
                real(shard) if shard.is_dir() else shard.unlink()
            raise KeyboardInterrupt
        real(folder, **options)

    with monkeypatch.context() as patched:
        patched.setattr("mcontriever.retrieval.workplace.shutil.rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            embed(asked(models, corpus, out))
    assert not out.with_name("out.shards").exists()
    assert len(list(tmp_path.iterdir())) == 2
    embed(asked(models, corpus, out))
    assert list(tmp_path.iterdir()) == [out]


def test_a_run_killed_before_it_tidied_up_leaves_nothing_after_the_next(models, corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def dies(work):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mcontriever.retrieval.workplace._put_away", dies)
        with pytest.raises(KeyboardInterrupt):
            embed(asked(models, corpus, out))
    assert len(list(tmp_path.iterdir())) == 2
    embed(asked(models, corpus, out))
    assert list(tmp_path.iterdir()) == [out]


def test_what_was_begun_of_something_else_is_not_tidied_up(models, corpus, tmp_path):
    out = embed(asked(models, corpus, tmp_path / "out"))
    embed(asked(models, corpus, out, model=2, shard="0/2", overwrite=True))
    begun = content(out.with_name("out.shards"))
    embed(asked(models, corpus, out))
    assert content(out.with_name("out.shards")) == begun


def test_who_waits_for_a_lock_whose_folder_is_put_away_is_told(tmp_path, monkeypatch):
    folder, real = tmp_path / "work", sys.modules["fcntl"].flock
    folder.mkdir()

    def put_away_meanwhile(stream, how):
        folder.rename(tmp_path / "aside")
        real(stream, how)

    monkeypatch.setattr("mcontriever.retrieval.workplace.fcntl.flock", put_away_meanwhile)
    with pytest.raises(FileNotFoundError), locked(folder / "lock"):
        pass


def test_a_part_that_goes_on_after_all_was_put_away_embeds_nothing(
    models, corpus, whole, tmp_path, monkeypatch, capsys
):
    out, real, calls = tmp_path / "out", Encoder.stream, []

    def others_finish(self, passages, **options):
        calls.append(passages)
        shutil.copytree(whole, out)
        return real(self, passages, **options)

    def make(path, *given, **options):
        made = make_shard(path, *given, **options)
        path.parent.rename(tmp_path / "gone")
        return made

    make_shard = sys.modules["mcontriever.retrieval.embed"].make_shard
    monkeypatch.setattr(sys.modules["mcontriever.retrieval.embed"], "make_shard", make)
    monkeypatch.setattr(Encoder, "stream", others_finish)
    embed(asked(models, corpus, out))
    assert "kept" in capsys.readouterr().err
    assert len(calls) == 1
    assert not out.with_name("out.shards").exists()


def test_a_bar_counts_what_others_finish(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("mcontriever.retrieval.workplace._LOOK", 0.01)
    shutil.copytree(whole / "00000", tmp_path / "000000-a")
    shutil.copytree(whole / "00000", tmp_path / ".000002-b.partial-host-1")
    running = Bar("Embedding", COUNT, "passages", shown=False)
    with watched(tmp_path, {0}, 2, running):
        assert running.done == 4
        for name in ("000001-c", "000004-d"):
            shutil.copytree(whole / "00005", tmp_path / name)
    assert running.done == 7  # and part 1 of 2 is somebody else's


def test_a_shard_is_no_other_whose_number_begins_alike(tmp_path):
    for name in ("1000000-a", "10000000-b", "1000000-c"):
        (tmp_path / name).mkdir()
    assert [path.name for path in same_number(tmp_path, "1000000-a")] == ["1000000-c"]

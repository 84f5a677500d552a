"""Passages to vectors: `mcontriever embed`. One shard after another, so memory does not grow with the corpus.

The corpus is read once, in blocks; a block's hash says whether its shard is there already. All ways of sharing the work
are the same one: part i of n does every n-th shard, be it a process, a rank of a launcher, a machine or a task of Ray.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import workers
from ..artifact import open_artifact, refuse_other, refuse_overlap
from ..corpus.passages import Block, estimate_lines, passage_files, read_blocks, unread_files
from ..corpus.report import Tally
from ..errors import ArtifactError, DataError, SettingsError
from ..pairs.prefetch import prefetch
from ..progress import bar, note
from .embed_settings import PIPED, EmbedSettings
from .shard import SHARD, Treatment, make_shard, name_of, same_number
from .vectors import KIND, describe_encoder, refuse_existing
from .workplace import check_there, clear, join, keeping, locked, made_from, place_of, prepare_place, watched

if TYPE_CHECKING:
    from ..encoder import Encoder

__all__ = ["EmbedSettings", "embed"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part `number` of the `of` that the work is cut into; `local` counts those on this machine, for GPUs.

    `threads`, unless 0, is how many it may use on a CPU. One that is only `compared` embeds nothing.
    """

    settings: EmbedSettings
    number: int
    of: int
    local: int = 0
    threads: int = 0
    compared: bool = False


def embed(settings: EmbedSettings) -> Path:
    """Write a `vectors` artifact. One already made from the same passages by the same encoder is left as it is."""
    out = Path(settings.out)
    inputs = [settings.checkpoint, "" if settings.corpus == PIPED else settings.corpus]
    for place in (out, place_of(out)):
        refuse_overlap(place, inputs)
    refuse_other(out, KIND)
    passage_files(settings.corpus)  # complains of one that is not there, before an encoder is loaded
    if out.exists() and not (settings.overwrite and settings.corpus == PIPED):  # what is piped can be read only once
        if _kept(out, settings):
            return out
        refuse_existing(out, settings.overwrite)
    parts, rank = _parts(settings)
    if not rank and (passed_over := unread_files(settings.corpus)):
        note(f"{settings.corpus}: not read, as their names are not those of passages: {', '.join(passed_over)}")
    try:
        _embed(settings, parts, rank)
    except FileNotFoundError:
        if place_of(out).exists() or not out.exists():
            raise
        if not _kept(out, settings):  # else the other parts were all there was to do, and put away the folder
            refuse_existing(out, overwrite=False)
    return out


def _embed(settings: EmbedSettings, parts: list[Part], rank: int) -> None:
    out, alone = Path(settings.out), len(parts) == parts[0].of
    total, unit = None, "passages"
    if (estimated := estimate_lines(passage_files(settings.corpus))) is not None:
        total = round(estimated[0] * len(parts) / parts[0].of)
        unit = "passages" if estimated[1] and alone else "passages, about"
    with keeping(place_of(out), alone), bar("Embedding", total, unit, shown=not rank) as running:

        def progress(count: int, _: object) -> None:
            if count < 0:  # done by a run before
                running.skip(-count)
            elif count:
                running.advance(count)

        numbers = {part.number for part in parts}
        with watched(place_of(out), numbers, parts[0].of, running) if settings.ray else contextlib.nullcontext():
            done = workers.run(
                embed_part,
                parts,
                workers=1 if settings.ray else len(parts),
                address=settings.ray,
                gpus=_gpus(settings),
                label=lambda part: f"part {part.number} of {part.of}",
                progress=progress,
            )
        names, about = done[0]["names"], done[0]["about"]
        if any(found["names"] != names for found in done):
            raise DataError(f"{settings.corpus}: changed while it was read; run it again")
        join(out, names, about, bad_lines=settings.bad_lines, overwrite=settings.overwrite)


def embed_part(part: Part) -> dict[str, Any]:
    """Make every `of`-th shard that is not there yet; returns the names of all shards, and what is said of them."""
    from ..encoder import agreement

    encoder, settings = _load(part), part.settings
    described = describe_encoder(encoder, settings.checkpoint)
    treatment = Treatment(encoder=described["fingerprint"], precision=encoder.precision, stored=settings.dtype)
    about = {"encoder": described, "precision": encoder.precision, "dtype": settings.dtype}
    names: list[str] = []
    if part.compared:
        names += (name_of(number, block, treatment) for number, block in _blocks(settings, lambda number, block: False))
        return {"names": names, "about": about}
    work = place_of(Path(settings.out))
    # these two decide where shards begin and what is in them, so with others all that is done would be done anew
    job = asdict(treatment) | {"shard_passages": settings.shard_passages, "language": settings.language}
    prepare_place(work, job, settings.overwrite)
    if encoder.precision == "int8" and not part.number:
        note(agreement.told(encoder))
    tally = Tally(settings.bad_lines)
    busy = f"{work}: another process is doing part {part.number} of {part.of} of the same; wait for it"

    def needed(number: int, block: Block) -> bool:
        return number % part.of == part.number and not (work / name_of(number, block, treatment)).exists()

    with locked(work / f"part-{part.number}-of-{part.of}.lock", busy):
        for number, block in _blocks(settings, needed):
            names.append(name_of(number, block, treatment))
            if number % part.of != part.number:
                continue
            path = work / names[-1]
            if (facts := workers.finished(path, SHARD)) is None:
                check_there(work)
                for other in same_number(work, names[-1]):
                    note(f"{block.file}: differs from what was begun, from line {block.first_line} on; embedded anew")
                    shutil.rmtree(other)
                facts = make_shard(
                    path,
                    block,
                    encoder,
                    treatment,
                    batch_tokens=settings.batch_tokens or None,
                    strict=not settings.bad_lines,
                )
            else:
                workers.tick(-facts["count"])
            tally.add(facts)
    return {"names": names, "about": about}


def _blocks(settings: EmbedSettings, needed: Callable[[int, Block], bool]) -> Iterator[tuple[int, Block]]:
    """Numbered blocks; while one is embedded the next one is read and hashed and, where it is needed, parsed."""
    source = read_blocks(settings.corpus, language=settings.language, lines=settings.shard_passages)

    def following(number: int) -> Block | None:
        block = next(source, None)
        if block is not None and block.digest and needed(number, block):
            _ = block.items  # as its digest, kept by the block
        return block

    with contextlib.closing(prefetch(following, itertools.count())) as coming:
        for number, block in coming:
            if block is None:
                return
            yield number, block


def _parts(settings: EmbedSettings) -> tuple[list[Part], int]:
    """What this process and its workers do, and its rank under a launcher."""
    number, of = settings.part
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        if settings.workers > 1 or settings.ray:
            raise SettingsError("under a launcher its ranks share the work: leave out --workers and --ray")
        if settings.corpus == PIPED:
            raise SettingsError("standard input can be read by one process only: start it without a launcher")
        from ..ranks import local_rank, local_world_size

        threads = max(1, workers.cores() // local_world_size())
        return [
            Part(settings=settings, number=number * world + rank, of=of * world, local=local_rank(), threads=threads)
        ], rank
    count = settings.workers or (workers.slots(settings.ray, _gpus(settings)) if settings.ray else 1)
    threads = 1 if settings.ray else max(1, workers.cores() // count) if count > 1 else 0
    return [
        Part(settings=settings, number=number * count + each, of=of * count, local=each, threads=threads)
        for each in range(count)
    ], 0


def _gpus(settings: EmbedSettings) -> int:
    return int(bool(settings.ray) and settings.device.startswith("cuda"))


def _load(part: Part) -> Encoder:
    import torch

    from ..encoder import load

    device = part.settings.device
    if part.threads:
        torch.set_num_threads(part.threads)
        # Ray has already given each task its own
        if device in ("", "cuda") and torch.cuda.is_available() and not part.settings.ray:
            device = f"cuda:{part.local % torch.cuda.device_count()}"
    return load(part.settings.checkpoint, device=device or None, precision=part.settings.precision)


def _kept(out: Path, settings: EmbedSettings) -> bool:
    """Whether what lies at OUT is what would be made, and so stays; nothing is embedded to know it."""
    try:
        meta = open_artifact(out, KIND).meta
    except ArtifactError:
        if settings.overwrite:
            return False
        raise
    names = embed_part(Part(settings=settings, number=0, of=1, compared=True))["names"]
    if meta.get("made_from") != made_from(names):
        return False
    note(f"{out}: made from the same passages by the same encoder already; kept")
    clear(out, names)
    return True

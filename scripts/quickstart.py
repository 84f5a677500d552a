"""`make quickstart`: the whole road on the sample, each step the very command a user would type.

Nothing is computed here: the steps are processes (`quickstart_steps.py`), and what they leave behind is shown, on the
terminal and as one page. Killed anywhere and started again, it continues.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickstart_steps import (  # type: ignore[import-not-found]  # scripts/ is no package
    PORT,
    RECORD,
    ROOT,
    Step,
    Walk,
    alone,
    say,
    shown,
    width,
)

from mcontriever import settings
from mcontriever.corpus.formats import Query, read_qrels, read_queries
from mcontriever.corpus.passages import read_passages
from mcontriever.errors import McontrieverError, UsageError, run_command
from mcontriever.evaluation import Results, parse_pairs, read_run
from mcontriever.evaluation.measures import trec_order
from mcontriever.evaluation.report import Answer, StepReport, Training, write_report
from mcontriever.languages import language
from mcontriever.progress import duration
from mcontriever.retrieval import Hit
from mcontriever.retrieval.terminal import show

SAMPLE = "mcontriever/sample"
# What is asked at the end, of English passages. Chosen before any model was trained.
QUESTIONS = (("ar", "kilimanjaro-q1"), ("sw", "marie-curie-q1"))
RANDOM, LEXICAL, PRETRAINED, TUNED = "random encoder", "BM25", "pretrained", "fine-tuned"
MEASURE = "MRR@10"
LITTLE = 0.02  # of the measure: a smaller change of its mean is told as none
# What the whole road must show, beside beating the random encoder in every task.
CROSSINGS = (("ar", "en"), ("sw", "en"))
# Two ranks, to be the real thing; on a machine with one GPU there is room for one.
RANKS = 1 if len(list(Path("/dev").glob("nvidia[0-9]*"))) == 1 else 2
CORES = len(os.sched_getaffinity(0))
# What the training processes start with. glibc's allocator variables, a gain for models of 20 M weights and more, were
# tried: no gain for this one, and more memory.
TRAINING = {"OMP_NUM_THREADS": str(max(1, CORES // RANKS))}
WRITTEN = ("shards", "pretrain", "finetune", "vectors", "index", "evaluation", "logs", RECORD, "report.html")
NOTES = [
    " ".join(lines.split())
    for lines in (
        """The passages that are searched, but not the questions about them, were part of the unlabelled text that the
        encoder was pretrained on; fine-tuning saw only English questions, about other topics than the test's.""",
        """The random encoder has the same architecture and tokenizer and no training at all: what it scores comes from
        shared pieces of words. BM25 has no way across languages but names and numbers that are written alike.""",
        """Half of the pretraining pairs are crops of two language versions of one article. A model this small, trained
        for minutes on 150 topics, shows that the road works end to end; it is no measure of what the method can do.""",
    )
]


@dataclass(frozen=True, kw_only=True)
class QuickstartSettings:
    """Walk the whole road on the sample: prepare, pretrain, fine-tune, embed, index, evaluate, search, report."""

    out: str = "runs/quickstart"
    """folder of all that is written, as seen from the repository"""
    steps: int = 0
    """train for so few steps only, to try the road out; 0 leaves it to the recipes"""
    pairs: tuple[str, ...] = ()
    """pairs of languages that are evaluated, to try the road out; ar-en and sw-en among them; by default all"""
    fresh: bool = False
    """begin anew: first remove what an earlier quickstart left in OUT"""

    def __post_init__(self) -> None:
        settings.in_range("steps", self.steps, 0, 1e9)
        if self.pairs and not set(CROSSINGS) <= set(parse_pairs(self.pairs)):
            raise UsageError(
                f"--pairs: {' and '.join(map('-'.join, CROSSINGS))} must be among them, for what is searched"
            )


def road(out: str, few: int, pairs: Sequence[str] = ()) -> list[Step]:
    """The steps in order; paths as seen from the repository."""
    shards, pretrained, tuned = f"{out}/shards", f"{out}/pretrain/model", f"{out}/finetune/model"
    vectors, index, evaluation = f"{out}/vectors", f"{out}/index", f"{out}/evaluation"
    english = f"{SAMPLE}/corpus.en.jsonl"

    def train(name: str, source: str, result: str, *data: str) -> Step:
        recipe = f"quickstart-{name}"
        launcher = ("deepspeed", "--num_gpus", str(RANKS), "--master_port", PORT, "mcontriever/train.py")
        given = ("--recipe", recipe, "--deepspeed_config", "ds_configs/zero1.json", *data, "--output", f"{out}/{name}")
        fewer = ("--steps", str(few), "--log_every", "1", "--saving.every", str(max(1, few // 2))) if few else ()
        inputs = (source, f"mcontriever/recipes/{recipe}.toml")
        return Step(name, (*launcher, *given, *fewer), inputs, result, "checkpoint", TRAINING)

    def search(code: str, question: str) -> Step:
        command = ("mcontriever", "search", index, _question(code, question).text, "--k", "3")
        return Step(f"search-{code}", command, (index,), f"{out}/logs/search-{code}.log")

    prepare = ("mcontriever", "prepare", SAMPLE, shards, "--vocab_size", "6000")
    few_pairs = ("--pairs", ",".join(pairs)) if pairs else ()
    rows = ("--random", pretrained, "--checkpoint", f"{PRETRAINED}={pretrained},{TUNED}={tuned}")
    evaluate = ("python", "eval/folder.py", "--data", SAMPLE, *rows, "--out", evaluation, *few_pairs)
    results = f"{evaluation}/results.json"
    embed = ("mcontriever", "embed", tuned, english, vectors)
    return [
        Step("prepare", prepare, (SAMPLE,), shards, "token shards"),
        train("pretrain", shards, pretrained, "--unlabelled.shards", shards),
        train("finetune", pretrained, tuned, "--init", pretrained, "--labelled.file", SAMPLE),
        Step("embed", embed, (tuned, english), vectors, "vectors"),
        Step("index", ("mcontriever", "index", vectors, index), (vectors,), index, "index"),
        Step("evaluate", evaluate, (SAMPLE, pretrained, tuned), results, quiet=True),
        *(search(code, question) for code, question in QUESTIONS),
    ]


def main(argv: list[str]) -> None:
    """Walk the road and show where it led."""
    given = settings.parse(QuickstartSettings, argv, prog="scripts/quickstart.py")
    out, began = ROOT / given.out, time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with alone(out):
        if given.fresh:
            _remove(out)
        say("Every line that begins with $ is a command to type, in this folder, after: source .venv/bin/activate")
        walk, steps, answers = Walk(out), road(str(shown(out)), given.steps, given.pairs), dict[str, Answer]()
        for step in steps:
            ran = walk.do(step)
            if step.name == "evaluate":
                found = Results.read(ROOT / step.result)
                brief = [value for value in found.values if value.measure != "Recall@100"]  # of 150, it tells little
                say(f"\n{Results(found.about, brief).terminal(width())}")
                answers = {f"search-{code}": _answer(out, code, question) for code, question in QUESTIONS}
            elif answer := answers.get(step.name):
                if not ran:
                    say(show(answer.query.text, answer.hits, width=width()).rstrip())
                say(f"\n  In English: {answer.in_english}\n  {answer.verdict}")
        done = [walk.record[step.name] for step in steps]
        holds, verdict = judge(found)
        _write_page(out, found, verdict, list(answers.values()), steps, done)
    seconds, memory = sum(entry["seconds"] for entry in done), max(entry["memory"] for entry in done)
    disk = sum(file.lstat().st_blocks for file in out.rglob("*")) * 512
    say(f"\n{verdict}\n\n{NOTES[0]}\n\nReport: {shown(out / 'report.html')}")
    say(
        f"The steps took {duration(seconds)} in all, this start {duration(time.monotonic() - began)}. Most memory held "
        f"at once: {memory / 2**30:.2f} GiB (sum over one step's processes, shared pages shared out, looked at twice a "
        f"second). On disk: {disk / 2**20:.0f} MiB."
    )
    say("\nNext:")
    for purpose, command in _next_commands(str(shown(out))).items():
        say(f"  {purpose}\n    $ {command}")
    if not holds and not given.steps:
        raise McontrieverError(
            f"the quickstart did not show what it is to show; {shown(out / 'report.html')} says where"
        )


def judge(found: Results) -> tuple[bool, str]:
    """Whether the run shows what a quickstart is to show, and that in plain words, with what fine-tuning added."""
    values = {(value.system, value.task): value.value for value in found.values if value.measure == MEASURE}
    tasks = list(dict.fromkeys(task for _, task in values))
    tuned, before, blind, words = (
        {task: values[system, task] for task in tasks} for system in (TUNED, PRETRAINED, RANDOM, LEXICAL)
    )
    names = {task: _in_words(*task.split("-", 1)) for task in tasks}
    faults = [f"{names[task]} does not beat the random encoder" for task in tasks if not tuned[task] > blind[task]]
    crossings = ["-".join(pair) for pair in CROSSINGS]
    faults += [f"{names[task]} does not beat BM25" for task in crossings if not tuned[task] > words[task]]
    against = " and ".join(
        f"{names[task]} ({tuned[task]:.2f} against {words[task]:.2f} and {blind[task]:.2f})" for task in crossings
    )
    told = (
        f"Checked, and it holds: by {MEASURE} the fine-tuned encoder beats the random one in all {len(tasks)} tasks, "
        f"and both BM25 and the random one in {against}."
        if not faults
        else f"Checked, and it DOES NOT HOLD: by {MEASURE}, {'; '.join(faults)}."
    )
    after, prior = (sum(row.values()) / len(tasks) for row in (tuned, before))
    gain = after - prior
    added = "took something away" if gain <= -LITTLE else "added something" if gain >= LITTLE else "added about nothing"
    return not faults, (
        f"{told} Fine-tuning {added}: over all tasks the mean is {prior:.3f} pretrained, {after:.3f} fine-tuned."
    )


def _in_words(asked: str, over: str) -> str:
    return language(asked).name if asked == over else f"{language(asked).name}→{language(over).name}"


def _question(code: str, number: str) -> Query:
    return next(query for query in read_queries(ROOT / SAMPLE / f"queries.{code}.jsonl") if query.id == number)


def _answer(out: Path, code: str, number: str) -> Answer:
    """From the evaluation's run, which goes deeper than what the search showed: same encoder, same passages."""
    passages = {passage.id: passage for passage in read_passages(ROOT / SAMPLE / "corpus.en.jsonl")}
    right = [name for name, grade in read_qrels(ROOT / SAMPLE / "qrels/test.en.tsv")[number].items() if grade > 0]
    ranked = trec_order(read_run(out / f"evaluation/runs/{TUNED}.{code}-en.trec")[number])
    ranking = [
        Hit(name, passages[name].title, passages[name].text, "en", score, rank)
        for rank, (name, score) in enumerate(ranked, start=1)
    ]
    return Answer(_question(code, number), _question("en", number).text, ranking, right, passages[right[0]].title)


def _write_page(
    out: Path, found: Results, verdict: str, answers: list[Answer], steps: list[Step], done: list[dict[str, Any]]
) -> None:
    trainings = []
    for name, heading in (("pretrain", "Pretraining"), ("finetune", "Fine-tuning")):
        lines = (out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        trainings.append(Training(heading, [json.loads(line) for line in lines]))
    across = ", ".join(f"{name} {value:.2f}" for name, value in found.frame(MEASURE)["mean cross"].items())
    write_report(
        out / "report.html",
        title="mcontriever: the quickstart",
        summary="150 topics in six languages: prepared, pretrained without labels by two-crop contrast with a momentum "
        "encoder, fine-tuned on English questions, evaluated, searched. Asked in another language over English "
        f"passages, mean {MEASURE}: {across}. {verdict}",
        facts=_facts(out, found),
        steps=[
            StepReport(step.name, entry["shown"], entry["seconds"], entry["memory"])
            for step, entry in zip(steps, done, strict=True)
        ],
        trainings=trainings,
        results=found,
        answers=answers,
        notes=NOTES,
        next_commands=_next_commands(str(shown(out))),
    )


def _facts(out: Path, found: Results) -> dict[str, str]:
    def recipe(name: str) -> dict[str, Any]:
        return tomllib.loads((out / name / "model/recipe.toml").read_text(encoding="utf-8"))

    def training(name: str) -> str:
        told, size = recipe(name), (out / name / "model/model.safetensors").stat().st_size
        return (
            f"{told['steps']} steps of {told['batch']['size']} pairs, {told['objective']['kind']}, "
            f"{told['precision']}, learning rate {told['optim']['lr']:g}, seed {told['seed']}; "
            f"{RANKS} ranks, DeepSpeed ZeRO-1; {size / 4e6:.1f} M weights"
        )

    model, value = recipe("pretrain")["model"], found.values[0]
    packages = ("mcontriever", "torch", "deepspeed", "transformers", "sentencepiece", "faiss-cpu", "bm25s")
    versions = {known.name.lower(): known.version for known in importlib.metadata.distributions()}
    return {
        "Machine": f"{CORES} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "Versions": ", ".join(f"{name} {versions[name]}" for name in packages if name in versions),
        "Model": f"XLM-R shape: {model['layers']} layers, {model['hidden']} wide, {model['heads']} heads",
        "Pretraining": training("pretrain"),
        "Fine-tuning": training("finetune"),
        "Evaluation": f"{value.queries} test questions over {value.passages} passages in each language",
    }


def _next_commands(out: str) -> dict[str, str]:
    return {
        "Ask something yourself, in any of the six languages:": f'mcontriever search {out}/index "YOUR QUESTION"',
        "Make your own text (a folder of LANGUAGE.txt or corpus.LANGUAGE.jsonl files) into token shards:": (
            "mcontriever prepare YOUR_FOLDER runs/mine/shards"
        ),
        "Pretrain on it (comparable pairs need texts that name their article):": (
            f"deepspeed --num_gpus {RANKS} mcontriever/train.py --recipe quickstart-pretrain --deepspeed_config "
            "ds_configs/zero1.json --unlabelled.shards runs/mine/shards --unlabelled.comparable 0 --output "
            "runs/mine/pretrain"
        ),
    }


def _remove(out: Path) -> None:
    """Only what a quickstart writes: OUT may be any folder."""
    for path in (out / name for name in WRITTEN):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""What a rank runs in `test_evaluate_ranks.py`: OUT SHARDS ENGINE[,ENGINE…], each trained measured and unmeasured.

An ENGINE is `plain` or the name of a file in ds_configs. One launch serves them all: the ranks stay together.
"""

import os
import pathlib
import sys

import torch

from mcontriever import ranks
from mcontriever.encoder import ModelSettings
from mcontriever.objectives import ObjectiveSettings
from mcontriever.pairs import UnlabelledSettings
from mcontriever.training import BatchSettings, SavingSettings, TrainSettings, train
from mcontriever.training.schedule import OptimSettings
from mcontriever.training.settings import EvaluationSettings, LoggingSettings

ROOT = pathlib.Path(__file__).parents[2]
EVALUATION = EvaluationSettings(
    data=str(ROOT / "mcontriever" / "sample"), pairs=("sw-sw", "en-sw"), every=2, queries=25, passages=60
)


def recipe(shards, output, engine, evaluation):
    return TrainSettings(
        output=str(output),
        steps=4,
        log_every=2,
        deepspeed_config="" if engine == "plain" else str(ROOT / "ds_configs" / f"{engine}.json"),
        model=ModelSettings(layers=2, hidden=32, heads=2, intermediate=64, max_positions=66, dropout=0.1),
        unlabelled=UnlabelledSettings(shards=str(shards), window=64),
        objective=ObjectiveSettings(queue_size=16, momentum=0.9),
        optim=OptimSettings(lr=1e-3, warmup=2),
        batch=BatchSettings(size=8),
        saving=SavingSettings(every=4, keep_last=False),
        evaluation=evaluation,
        logging=LoggingSettings(gemm_tflops=0.1),
    )


def main() -> None:
    out, shards, engines = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
    torch.set_num_threads(1)
    stop, ranks.stop = ranks.stop, lambda: None
    for engine in engines:
        train(recipe(shards, out / engine, engine, EVALUATION))
        train(recipe(shards, out / f"{engine}-alone", engine, EvaluationSettings()))
    stop()


if __name__ == "__main__":
    main()
    os._exit(0)  # for the reason given in mcontriever/train.py

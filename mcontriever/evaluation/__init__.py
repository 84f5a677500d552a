"""Evaluation is here so that a claim is a number anyone can check: test sets, runs, measures, tables."""

from __future__ import annotations

from .datasets import EvaluationSet, Task, parse_pairs
from .measures import Measure, evaluate, mean
from .runs import read_run, write_run
from .tables import Results, Value

__all__ = [
    "EvaluationSet",
    "Measure",
    "Results",
    "Task",
    "Value",
    "evaluate",
    "mean",
    "parse_pairs",
    "read_run",
    "write_run",
]

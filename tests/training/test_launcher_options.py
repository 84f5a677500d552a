"""torchrun and deepspeed read the whole command line first: an option of ours must not look like one of theirs."""

import inspect
import re

import pytest
from deepspeed.launcher import runner
from torch.distributed import run

from mcontriever import help_text
from mcontriever.training import TrainSettings

OURS = [key for key, *_ in help_text.described(TrainSettings)] + ["recipe", "debug", "help"]
TORCHRUN = [option for action in run.get_args_parser()._actions for option in action.option_strings]
DEEPSPEED = re.findall(r'"(--[\w-]+)"', inspect.getsource(runner.parse_args))


def test_no_option_is_the_beginning_of_one_of_the_launchers():
    assert "--nproc-per-node" in TORCHRUN
    assert "--hostfile" in DEEPSPEED
    # after the script's name an exact match is passed on, a beginning that fits several is "ambiguous"
    taken = {option for option in TORCHRUN + DEEPSPEED if option != "--help"}
    for key in OURS:
        for spelling in {key, key.replace("_", "-")}:
            assert [option for option in taken if option.startswith(f"--{spelling}")] == []


@pytest.mark.parametrize("read", [run.parse_args, runner.parse_args], ids=["torchrun", "deepspeed"])
def test_the_launchers_pass_every_option_on(read):
    words = [word for key in OURS if key != "help" for word in (f"--{key}", "1")]
    read_back = read(["train.py", *words])
    rest = getattr(read_back, "training_script_args", None) or read_back.user_args
    assert rest == words

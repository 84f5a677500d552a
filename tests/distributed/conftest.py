"""How hard the fault injection tries, and where its ranks find what they run."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parent))  # processes of multiprocessing import their target by its name


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="SIGKILLs a run of test_faults.py survives, each engine")
    parser.addoption("--kills-seed", type=int, default=0, help="of where they strike")

"""TensorBoard and Weights & Biases, read back from the files they write; and a sink that fails harms nothing."""

import importlib
import json
import struct
import sys
import time
import types

import pytest

from mcontriever.errors import DataError, McontrieverError, MissingExtra, SettingsError
from mcontriever.training.settings import LoggingSettings
from mcontriever.training.sinks import Fanout, TensorBoard, WandB, open_sinks


class Sink:
    def __init__(self, name, fails_at=None):
        self.name, self.told, self.closed, self._fails_at = name, [], False, fails_at

    def log(self, step, values):
        if step == self._fails_at:
            raise OSError("no space\nleft on device")
        self.told.append(step)

    def close(self):
        self.closed = True


def test_a_sink_that_fails_is_named_once_and_the_others_go_on(capsys):
    good, bad = Sink("good"), Sink("bad", fails_at=2)
    sinks = Fanout([bad, good])
    for step in range(1, 5):
        sinks.log(step, {"loss": 1.0})
    sinks.close()
    assert (good.told, bad.told) == ([1, 2, 3, 4], [1])
    assert (good.closed, bad.closed) == (True, False)
    said = "bad: no space left on device; nothing more is sent there, metrics.jsonl goes on\n"
    assert capsys.readouterr().err == said


def test_nothing_is_opened_unless_asked_for(tmp_path):
    assert open_sinks(LoggingSettings(), tmp_path, 0, {}) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "chosen"), [("tensorboard", {"tensorboard": True}), ("wandb", {"wandb": "project"})]
)
def test_a_library_that_is_not_there_is_an_error_at_once(tmp_path, monkeypatch, module, chosen):
    monkeypatch.setitem(sys.modules, module, None)
    extra = "log" if module == "tensorboard" else "wandb"
    with pytest.raises(MissingExtra, match=rf"logging\.\w+ needs {module}: pip install 'mcontriever\[{extra}\]'"):
        open_sinks(LoggingSettings(**chosen), tmp_path, 0, {})


def test_weights_and_biases_that_cannot_be_opened_are_told_with_a_way_out(tmp_path, monkeypatch):
    class NoKey(Exception):
        pass

    def init(**options):
        raise NoKey("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Settings=dict))
    with pytest.raises(McontrieverError, match=r"^Weights & Biases cannot be opened: No API key .*WANDB_MODE=offline"):
        open_sinks(LoggingSettings(wandb="project"), tmp_path, 0, {})


def test_event_files_that_cannot_be_written_are_told_with_a_way_out(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(McontrieverError, match=r"^TensorBoard cannot be opened: .*leave out logging.tensorboard"):
        open_sinks(LoggingSettings(tensorboard=True), tmp_path, 0, {})


def test_a_project_no_server_would_take_is_refused():
    with pytest.raises(SettingsError, match=r"logging.wandb must be a project's name"):
        LoggingSettings(wandb="team/project")


def scalars(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_each_step_once_after_a_resumption(tmp_path):
    first = TensorBoard(tmp_path, 0)
    for step in (2, 4, 6):
        first.log(step, {"training/loss": step / 8, "evaluation/MRR@10 ar-en": 0.5})
    first.close()
    second = TensorBoard(tmp_path, 4)  # killed after step 6, its newest state is that of step 4
    for step in (6, 8):
        second.log(step, {"training/loss": step / 8})
    second.close()
    told = scalars(tmp_path)
    assert told["training/loss"] == [(2, 0.25), (4, 0.5), (6, 0.75), (8, 1.0)]
    assert told["evaluation/MRR@10 ar-en"] == [(2, 0.5), (4, 0.5)]


@pytest.fixture
def offline(monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")


def chunks(content):
    """The records of a LevelDB log, which is what wandb's offline files are behind their 7 bytes of header."""
    place, parts = 7, []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no header fits into the rest of a block
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def records(folder):
    """What one start wrote: the run, and the lines of its curves."""
    protocol = importlib.import_module("wandb.proto.wandb_internal_pb2")
    run, history = None, []
    for chunk in chunks(next(folder.glob("run-*.wandb")).read_bytes()):
        record = protocol.Record()
        record.ParseFromString(chunk)
        if record.WhichOneof("record_type") == "run":
            run = record.run
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return run, history


@pytest.mark.slow
def test_wandb_keeps_one_run_over_all_starts_and_its_files_hold_the_curves(tmp_path, offline):
    output = tmp_path / "mine"
    output.mkdir()
    identifiers = []
    for steps in ((2, 4), (4, 6)):
        sink = WandB(output, "project", {"steps": 6, "optim": {"lr": 0.5}})
        for step in steps:
            sink.log(step, {"training/loss": step / 8})
        sink.close()
        identifiers.append((output / WandB.ID).read_text().strip())
    assert identifiers[0] == identifiers[1]
    told, give_up = [], time.monotonic() + 20
    while sum(len(history) for _, history in told) < 4 and time.monotonic() < give_up:  # its service writes on its own
        told = [records(folder) for folder in sorted((output / "wandb").glob(f"offline-run-*-{identifiers[0]}*"))]
        time.sleep(0.05)
    for run, _ in told:
        assert (run.project, run.run_id, run.display_name) == ("project", identifiers[0], "mine")
        assert json.loads(next(item.value_json for item in run.config.update if item.key == "optim")) == {"lr": 0.5}
    lines = [(line["step"], line["training/loss"]) for _, history in told for line in history]
    assert lines == [(2, 0.25), (4, 0.5), (4, 0.5), (6, 0.75)]


def test_a_damaged_id_is_named(tmp_path, offline):
    (tmp_path / WandB.ID).write_text("../x\n")
    with pytest.raises(DataError, match=r"wandb-id.txt:1: '../x' is no id of a run"):
        WandB(tmp_path, "project", {})

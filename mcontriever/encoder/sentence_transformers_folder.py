"""Folders that sentence-transformers wrote: `modules.json` names the parts, and each part's folder says how it is used.

Both ways of writing them are read, that of its versions up to 5 and that of 6. A part, an order or a setting that would
give other vectors than sentence-transformers' own is refused by name, never passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .contract import POOLINGS, SIMILARITIES, CheckpointError, Rules
from .weights import PROJECTION, inside, read_json, read_weights

MODULES = "modules.json"
_OWN = "sentence_transformers."  # how the names of its own modules begin
_ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
POOLING_MODES = {"cls": "cls_token", "mean": "mean_tokens"}
"""What versions up to 5 call a pooling; 6 calls it as we do."""
ACTIVATIONS = {"tanh": "torch.nn.modules.activation.Tanh", "identity": "torch.nn.modules.linear.Identity"}
"""The class that it names for what follows a projection."""
_POOLINGS = {name: pooling for pooling, mode in POOLING_MODES.items() for name in (pooling, mode)}
_ACTIVATIONS = {place: activation for activation, place in ACTIVATIONS.items()}
_TRANSFORMER = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json")
_FOLLOWED = ("max_seq_length", "query_length", "document_length", "do_lower_case", "unpad_inputs")
_PLAIN = {  # settings that say what we do anyway; with any other value, and under any other name, they are refused
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_USE = "config_sentence_transformers.json"
_QUERY, _PASSAGE = ("query",), ("document", "passage", "corpus")  # the names of prompts, the first wins
_VECTOR = "sentence_embedding"


@dataclass(frozen=True)
class Dense:
    """The linear map after pooling: where its weights lie, what follows it, the length of its vectors."""

    folder: Path
    activation: str
    dimension: int

    def weights(self) -> dict[str, Tensor]:
        """Its weights under our names; one without a bias is one whose bias is zero."""
        tensors = {
            name.replace("linear.", PROJECTION): tensor.float() for name, tensor in read_weights(self.folder).items()
        }
        if set(tensors) == {f"{PROJECTION}weight"}:
            tensors[f"{PROJECTION}bias"] = tensors[f"{PROJECTION}weight"].new_zeros(self.dimension)
        return tensors


@dataclass(frozen=True)
class Parts:
    """What a folder says: where the transformer lies, the rules of use, the linear map if there is one."""

    transformer: Path
    rules: Rules
    dense: Dense | None


def read(folder: Path, room: int) -> Parts:
    """The parts of a folder with `modules.json`; its model has `room` positions, whatever longer it says."""
    places = _places(folder)
    transformer = places["Transformer"]
    rules = Rules(normalise="Normalize" in places)
    _transformer(transformer, room, rules)
    if "Normalize" in places:
        rules["similarity"] = "cosine"
        _plain(places["Normalize"] / "config.json", optional=True)
    _use(folder / _USE, rules)
    if "Pooling" in places:
        _pooling(places["Pooling"] / "config.json", rules)
    return Parts(transformer, rules, _dense(places["Dense"]) if "Dense" in places else None)


def transformer_folder(folder: Path) -> Path:
    """Where the model itself lies: the folder, or the one in it that `modules.json` names."""
    return _places(folder)["Transformer"] if (folder / MODULES).is_file() else folder


def _places(folder: Path) -> dict[str, Path]:
    """The folder of each part, in their order."""
    places: dict[str, Path] = {}
    for module in read_json(folder / MODULES, list):
        said = module if isinstance(module, dict) else {}
        kind, place = said.get("type"), said.get("path")
        if not (isinstance(kind, str) and isinstance(place, str)):
            raise CheckpointError(f"{folder}/{MODULES}: a module must have a type and a path, got {str(module)[:60]!r}")
        if not kind.startswith(_OWN):
            raise CheckpointError(
                f"{folder}/{MODULES}: module {kind} is code of another library or that comes with the checkpoint; "
                f"such code is never run here, only sentence-transformers' own {', '.join(_ORDER)} are known"
            )
        kind = kind.rpartition(".")[2]
        if kind not in _ORDER or kind in places:
            what = "a second" if kind in places else "module"
            raise CheckpointError(f"{folder}/{MODULES}: {what} {kind} cannot be loaded; known: {', '.join(_ORDER)}")
        places[kind] = inside(folder, place, MODULES)
    if list(places) != [kind for kind in _ORDER if kind in places] or "Transformer" not in places:
        raise CheckpointError(
            f"{folder}/{MODULES}: {', '.join(places) or 'no module'} cannot be loaded in this order; "
            f"expected {', '.join(_ORDER)}, of which only the first must be there"
        )
    return places


def _transformer(folder: Path, room: int, rules: Rules) -> None:
    path = next((folder / name for name in _TRANSFORMER if (folder / name).is_file()), folder / _TRANSFORMER[0])
    said = read_json(path) if path.is_file() else {}
    for key, value in said.items():
        if key not in _FOLLOWED and value not in (_PLAIN.get(key), None, {}, [], ""):
            raise CheckpointError(f"{path}: {key} {str(value)[:60]} cannot be followed: vectors may come out otherwise")
    length = said.get("max_seq_length") or _tokenizer_length(folder / "tokenizer_config.json")
    for key, rule in (("query_length", "query_max_length"), ("document_length", "passage_max_length")):
        tokens = said.get(key) or length
        if tokens is not None and not (isinstance(tokens, int) and tokens > 0):
            name = key if said.get(key) else "max_seq_length"
            raise CheckpointError(f"{path}: {name} must be a whole number, got {tokens!r}")
        if tokens is not None:
            rules[rule] = min(tokens, room)  # type: ignore[literal-required]
    rules["lowercase"] = bool(said.get("do_lower_case", False))


def _tokenizer_length(path: Path) -> int | None:
    """Version 6 keeps the length here; transformers itself writes 1e30 where there is none."""
    length = read_json(path).get("model_max_length") if path.is_file() else None
    return int(length) if isinstance(length, int | float) and length < 1e9 else None


def _pooling(path: Path, rules: Rules) -> None:
    said = read_json(path)
    modes = said.get("pooling_mode")
    if modes is None:  # up to version 5, a switch for each
        modes = [
            key.removeprefix("pooling_mode_") for key, on in said.items() if key[:13] == "pooling_mode_" and on is True
        ]
    modes = [modes] if isinstance(modes, str) else modes
    if not (isinstance(modes, list) and len(modes) == 1 and str(modes[0]) in _POOLINGS):
        raise CheckpointError(f"{path}: pooling {modes} cannot be loaded; known: {', '.join(POOLINGS)}, one of them")
    rules["pooling"] = _POOLINGS[modes[0]]
    if not said.get("include_prompt", True) and (rules.get("query_prefix") or rules.get("passage_prefix")):
        raise CheckpointError(f"{path}: include_prompt false cannot be followed: here a prefix is pooled with its text")


def _dense(folder: Path) -> Dense:
    path = folder / "config.json"
    said = _plain(path)
    activation = _ACTIVATIONS.get(str(said.get("activation_function")))
    if activation is None or said.get("use_residual"):
        what = "use_residual" if said.get("use_residual") else f"activation {said.get('activation_function')}"
        raise CheckpointError(f"{path}: a Dense module with {what} cannot be loaded; known: {', '.join(_ACTIVATIONS)}")
    if type(said.get("out_features")) is not int:
        raise CheckpointError(f"{path}: out_features must be a whole number, got {said.get('out_features')!r}")
    return Dense(folder, activation, said["out_features"])


def _plain(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The settings of a module, if it works on the vector of a text, as version 6 lets it say."""
    said: dict[str, Any] = {} if optional and not path.is_file() else read_json(path)
    for key in ("module_input_name", "module_output_name"):
        if said.get(key) not in (None, _VECTOR):
            raise CheckpointError(f"{path}: {key} {said[key]!r} cannot be followed; expected {_VECTOR}")
    return said


def _use(path: Path, rules: Rules) -> None:
    said = read_json(path) if path.is_file() else {}
    if said.get("truncate_dim") is not None:
        raise CheckpointError(
            f"{path}: truncate_dim {said['truncate_dim']!r} cannot be followed: vectors are kept whole"
        )
    prompts: Any = said.get("prompts") or {}
    if not (isinstance(prompts, dict) and all(isinstance(prompt, str) for prompt in prompts.values())):
        raise CheckpointError(f"{path}: prompts must be texts by name, got {str(prompts)[:60]!r}")
    default = said.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise CheckpointError(f"{path}: default_prompt_name {default!r} is none of its prompts {list(prompts)}")
    # a default that is one side's own prompt is no default for the other side
    common = "" if default is None or default in _QUERY + _PASSAGE else prompts[default]
    rules["query_prefix"] = next((prompts[name] for name in _QUERY if prompts.get(name)), common)
    rules["passage_prefix"] = next((prompts[name] for name in _PASSAGE if prompts.get(name)), common)
    similarity = said.get("similarity_fn_name")
    if similarity is None:
        return
    if similarity not in SIMILARITIES:
        raise CheckpointError(f"{path}: similarity_fn_name {similarity!r} cannot be loaded; known: dot, cosine")
    rules["similarity"] = similarity
    rules["normalise"] = rules["normalise"] or similarity == "cosine"

"""A model on disk without pickle: safetensors, and JSON for what was cut and quantized.

    checkpoint/
      model.safetensors   the plain state_dict
      manifest.json       kept indices, quantizers, the class it fits, the digest of the weights
      widths.json         {"modules": {module: {attribute: value}}, "shapes": {tensor: shape}}: the numbers that the modules
                          keep, and the shape of every tensor of the state_dict

With widths.json a pruned model of the user's own class is made without paredown: set the attributes, give each parameter and
buffer its shape, load the state_dict. What is not in the state_dict (non-persistent buffers) stays as the class makes it, so a
class whose cut reaches into one needs `load_checkpoint`.

`load_checkpoint` cuts, traces, folds, inserts and loads, in that order, into a fresh model of the user's own class.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pydantic
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from paredown.core.artifact import file_digest
from paredown.core.errors import CheckpointError, OutputError, ParedownError
from paredown.core.recipe import step_from_dict, step_to_dict
from paredown.core.report import BitsSensitivity
from paredown.core.steps import Quantize
from paredown.graph.dropped import Dropped
from paredown.graph.manifest import MANIFEST_KEYS, Manifest, manifest_of
from paredown.graph.surgery import cut
from paredown.pipeline.evaluate import scratch_folder, writing
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scheme import Scheme
from paredown.quantization.static import prepare
from paredown.train.masks import mark_sparse_, sparse_names

_EVIDENCE = pydantic.TypeAdapter(dict[str, BitsSensitivity])
_FORMAT, _VERSION = "paredown checkpoint", 1
_WEIGHTS, _MANIFEST, _WIDTHS = "model.safetensors", "manifest.json", "widths.json"
_ATTRIBUTES = (
    "in_channels", "out_channels", "in_features", "out_features", "num_features", "groups", "num_channels", "num_groups",
    "normalized_shape", "num_embeddings", "embedding_dim", "num_parameters", "input_size", "hidden_size", "proj_size",
    "kernel_size", "padding",
)  # fmt: skip


def save_checkpoint(model: nn.Module, path: str | Path) -> Path:
    """A pruned, quantized or untouched model as a folder, whole or not at all. An existing checkpoint there is replaced.

    Raises OutputError where `path` is something else than a checkpoint, CheckpointError where `model` is no module.
    """
    folder = Path(path)
    if not isinstance(model, nn.Module):
        raise CheckpointError("model must be a torch.nn.Module", got=type(model).__name__, remedy="pass what a step returned")
    if folder.exists() and not (folder / _MANIFEST).is_file():
        raise OutputError("a checkpoint is a folder of its own", got=folder.name, remedy="name a folder that doesn't exist yet")
    _require_tensors(model)
    with scratch_folder(folder) as scratch, writing(folder):
        state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
        safetensors.torch.save_file(state, scratch / _WEIGHTS)
        description = _describe(model) | {"sha256": file_digest(scratch / _WEIGHTS)}
        (scratch / _MANIFEST).write_text(json.dumps(description, indent=1))
        (scratch / _WIDTHS).write_text(json.dumps(_widths(model), indent=1))
        if folder.exists():
            folder.rename(scratch / "replaced")
        final = scratch.with_name(f"{scratch.name}-new")
        final.mkdir()
        for name in (_WEIGHTS, _MANIFEST, _WIDTHS):
            (scratch / name).rename(final / name)
        final.rename(folder)
    return folder


def load_checkpoint(path: str | Path, fresh_model: nn.Module) -> nn.Module:
    """The saved model, trainable (and prunable again, unless quantized), from a fresh model of the user's own class.

    `fresh_model` may have any weights; it is not touched. Raises CheckpointError: missing, corrupt, truncated, or another class.
    """
    folder = Path(path)
    description = _read(folder)
    expected, found = description["class"], type(fresh_model).__qualname__
    if expected != found:
        raise CheckpointError(f"this checkpoint was made from class {expected}", got=found, remedy=f"pass a fresh {expected}")
    try:
        manifest = Manifest.from_dict(_cuts(description)) if description["kept"] is not None else None
        model = cut(fresh_model, manifest) if manifest is not None else copy.deepcopy(fresh_model)
        if description["quantized"] is not None:
            model = _prepared(model, description["quantized"])
        model.load_state_dict(_weights(folder, description))
        mark_sparse_(model, _sparse(description, model))
    except CheckpointError:
        raise
    except (ParedownError, RuntimeError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"this checkpoint must fit a fresh {expected}",
            got=str(error).splitlines()[0][:200],
            remedy="build the model as it was when saved; what an older version quantized, quantize again",
        ) from error
    return model.eval()


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint is there, and its weights are as they were saved."""
    folder = Path(path)
    try:
        return bool(file_digest(folder / _WEIGHTS) == _read(folder)["sha256"])
    except (OSError, CheckpointError):
        return False


def _require_tensors(model: nn.Module) -> None:
    """Raises CheckpointError for state that isn't a tensor (`get_extra_state`): a file of tensors can't hold it."""
    other = [name for name, value in model.state_dict().items() if not isinstance(value, torch.Tensor)]
    if other:
        raise CheckpointError(
            "a model's state must be tensors to be saved", got=other[0], remedy="let get_extra_state return a tensor"
        )


def _describe(model: nn.Module) -> dict[str, Any]:
    quantized = model if isinstance(model, QuantizedModel) else None
    manifest = quantized.manifest if quantized is not None else manifest_of(model)
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "class": quantized.source_class if quantized is not None else type(model).__qualname__,
        **({"kept": None} if manifest is None else manifest.to_dict()),
        "quantized": None if quantized is None else _quantized(quantized),
        "sparse": list(sparse_names(model)),
    }


def _quantized(model: QuantizedModel) -> dict[str, Any]:
    """What `prepare` needs to build the same graph again: config, weight range, and the form of the inputs."""
    inputs = model.example_inputs
    named = list(inputs.items() if isinstance(inputs, dict) else enumerate(inputs if isinstance(inputs, tuple) else (inputs,)))
    if nested := [f"a {type(value).__name__} as input {name}" for name, value in named if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(
            "a quantized model that is kept takes tensors, one by one",
            got=nested[0],
            remedy="let forward take each tensor as an argument of its own",
        )
    form = [[name, list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in named]
    dynamic = {name: {str(d): label for d, label in dims.items()} for name, dims in (model.dynamic or {}).items()}
    return {
        "step": step_to_dict(model.config),
        "reduced": model.reduced,
        "inputs": form,
        "dynamic": dynamic or None,
        "scheme": model.scheme.to_dict(),
        "evidence": _EVIDENCE.dump_python(dict(model.evidence), mode="json"),
        "learned": model.learned,
    }


def _prepared(model: nn.Module, quantized: dict[str, Any]) -> QuantizedModel:
    config = step_from_dict(quantized["step"])
    if not isinstance(config, Quantize):
        raise CheckpointError(
            "`quantized` must hold a quantize step", got=type(config).__name__, remedy="save the checkpoint again"
        )
    built = {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, shape, dtype in quantized["inputs"]}
    inputs = built if all(isinstance(name, str) for name in built) else tuple(built.values())
    dynamic = {name: {int(d): label for d, label in dims.items()} for name, dims in (quantized["dynamic"] or {}).items()}
    scheme = Scheme.from_dict(quantized["scheme"]) if "scheme" in quantized else None  # absent in older checkpoints
    prepared = prepare(model, inputs, config, reduced=quantized["reduced"], dynamic=dynamic or None, scheme=scheme)
    prepared.evidence = _EVIDENCE.validate_python(quantized.get("evidence", {}))  # absent in older checkpoints
    prepared.learned = bool(quantized.get("learned", True))  # likewise: nobody knows
    return prepared


def _read(folder: Path) -> dict[str, Any]:
    """manifest.json, checked for its form. Nothing in it is executed."""
    try:
        description = json.loads((folder / _MANIFEST).read_text())
    except FileNotFoundError:
        raise CheckpointError(
            "a checkpoint is a folder with manifest.json", got=folder.name, remedy="pass what save_checkpoint wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError("manifest.json must be valid JSON", got=str(error), remedy="save the checkpoint again") from None
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise CheckpointError(
            "manifest.json must be that of a paredown checkpoint", got=folder.name, remedy="pass what save_checkpoint wrote"
        )
    if description.get("version") != _VERSION:
        raise CheckpointError(
            f"this paredown reads version {_VERSION}",
            got=description.get("version"),
            remedy="load it with the paredown that wrote it",
        )
    missing = {"class", "kept", "quantized", "sha256"} - set(description)
    if missing:
        raise CheckpointError(
            "manifest.json must be complete", got=f"no {sorted(missing)[0]!r}", remedy="save the checkpoint again"
        )
    return description


def _cuts(description: dict[str, Any]) -> dict[str, Any]:
    """The entries of manifest.json that are those of a Manifest."""
    return {key: description[key] for key in MANIFEST_KEYS if key in description}


def _sparse(description: dict[str, Any], model: nn.Module) -> list[str]:
    """Names of the weights whose zeros stay; none in a checkpoint from before there was sparsity."""
    names = description.get("sparse", [])
    unknown = set(names) - {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if unknown:
        raise CheckpointError(
            "`sparse` must name parameters of the model", got=sorted(unknown)[0], remedy="build the model as it was when saved"
        )
    return list(names)


def _weights(folder: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / _WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"a checkpoint holds {_WEIGHTS}", got="no such file", remedy="copy the whole folder")
    if file_digest(path) != description["sha256"]:
        raise CheckpointError(
            f"{_WEIGHTS} must be as it was saved", got="another SHA-256: corrupt or truncated", remedy="copy it again"
        )
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{_WEIGHTS} must be a safetensors file", got=str(error), remedy="save the checkpoint again"
        ) from None


def _widths(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What `load_state_dict` needs to find in a fresh model, what its forward reads of the modules, and which of them do nothing
    any more: they hand their input on, or return zeros that broadcast, a tensor of so many dimensions or a tuple of them.
    """
    manifest = manifest_of(model)
    dropped = () if manifest is None else manifest.dropped
    cut_attributes = {} if manifest is None else manifest.attributes
    modules: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules():
        own = (key.partition(".")[0] for key in cut_attributes.get(path, {}))  # "sizes.0" is an entry of sizes
        values = {name: _number(getattr(module, name, None)) for name in dict.fromkeys((*_ATTRIBUTES, *own))}
        if found := {name: value for name, value in values.items() if value is not None}:
            modules[path] = found
    return {
        "modules": modules,
        "shapes": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
        "dropped": {part.module: _returned(part) for part in dropped},
    }


def _returned(part: Dropped) -> dict[str, Any]:
    if not part.outputs:
        return {"returns": "input"}
    return {"returns": "zeros", "dimensions": list(part.outputs) if part.several else part.outputs[0]}


def _number(value: Any) -> int | list[int] | None:
    """A whole number, or a tuple or list of them as a list; None for anything else."""
    if isinstance(value, tuple | list) and all(type(entry) is int for entry in value):
        return list(value)
    return value if type(value) is int else None

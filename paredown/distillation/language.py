"""Inputs of language models: which tokens count, and text that a teacher writes (Kim, Rush, arXiv:1606.07947, section 3.2).

The paper's teacher writes by beam search, the mode of its distribution; here it takes the most probable token at each place, or
draws at a temperature. It goes on from the sample's own first tokens, so that each sample gives another text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paredown.core.errors import RecipeError, TaskError
from paredown.core.knowledge import SequenceLevel, TokenLevel
from paredown.distillation.outputs import logits_of
from paredown.distillation.teacher import Asked
from paredown.task.batches import Inputs, apply_tensors, digests

_REMEMBERED = 1 << 25  # tokens at most


@dataclass(frozen=True)
class Written:
    """inputs: the batch with the teacher's tokens in place of its own. tokens, counted: (batch, sequence); true where a token is
    the teacher's, and before the end of its text.
    """

    inputs: Inputs
    tokens: Tensor
    counted: Tensor


class Writer:
    """Writes on from the first tokens of each sample, and remembers what it has written."""

    def __init__(self, teacher: Asked, config: SequenceLevel) -> None:
        self._teacher, self._config = teacher, config
        self._known: dict[tuple[bytes, int], Tensor] = {}  # by prompt, with what else is given, and length
        self._room = _REMEMBERED

    def __call__(self, inputs: Inputs) -> Written:
        """Raises TaskError for inputs without tokens (batch, sequence), or of no more than the prompt; RecipeError for `mask`."""
        tokens, config = tokens_of(inputs, self._config.mask), self._config
        length = tokens.shape[1]
        if length <= config.prompt:
            raise TaskError(
                f"sequences must be longer than the prompt of {config.prompt} tokens", got=length, remedy="write prompt=1"
            )
        every = torch.arange(len(tokens), device=tokens.device)
        keys = [(key, length) for key in digests(self._given(inputs, every, tokens[:, : config.prompt]))]
        missing = [row for row, key in enumerate(keys) if key not in self._known]
        fresh: dict[tuple[bytes, int], Tensor] = {}
        if missing:
            text = self._write(inputs, torch.tensor(missing, device=tokens.device), [keys[row][0] for row in missing])
            fresh = {keys[row]: each for row, each in zip(missing, text, strict=True)}
        rows = [fresh[key] if key in fresh else self._known[key] for key in keys]
        if sum(map(len, fresh.values())) <= self._room:
            self._room -= sum(map(len, fresh.values()))
            self._known.update(fresh)
        written = torch.stack(rows).to(tokens.device)
        return Written(_replaced(inputs, written, config.mask), written, _until(written, config))

    def keep(self) -> dict[str, Tensor]:
        """What was written (`train.state.Carried`)."""
        keys = torch.frombuffer(bytearray(b"".join(key for key, _ in self._known)), dtype=torch.uint8) if self._known else None
        if keys is None:
            return {}
        lengths = torch.tensor([length for _, length in self._known])
        return {"keys": keys.view(len(lengths), -1), "lengths": lengths, "tokens": torch.cat(list(self._known.values()))}

    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        if not kept:
            return
        lengths = kept["lengths"].tolist()
        texts = torch.split(kept["tokens"], lengths)
        keys = [(key.tobytes(), length) for key, length in zip(kept["keys"].numpy(), lengths, strict=True)]
        self._known = dict(zip(keys, texts, strict=True))
        self._room = _REMEMBERED - sum(lengths)

    @torch.no_grad()
    def _write(self, inputs: Inputs, rows: Tensor, seeds: list[bytes]) -> Tensor:
        """(rows, sequence). What is drawn of a sample hangs on its prompt, and on what else is given with it, alone."""
        whole = tokens_of(inputs, self._config.mask)
        draws = [torch.Generator().manual_seed(int.from_bytes(seed[:7], "little")) for seed in seeds]
        text = whole[rows, : self._config.prompt]
        while text.shape[1] < whole.shape[1]:
            given = self._given(inputs, rows, text)
            logits = logits_of(self._teacher.compute(given))[:, -1]  # (rows, vocabulary)
            text = torch.cat([text, self._chosen(logits, draws)[:, None].to(text)], 1)
        return text

    def _given(self, inputs: Inputs, rows: Tensor, text: Tensor) -> Inputs:
        """The rows of the inputs, as far as there is text, which stands for their tokens."""
        whole = tokens_of(inputs, self._config.mask)
        return _replaced(apply_tensors(inputs, lambda t: _cut(t, whole, rows, text.shape[1])), text, self._config.mask)

    def _chosen(self, logits: Tensor, draws: list[torch.Generator]) -> Tensor:
        if self._config.sampling is None:
            return logits.argmax(-1)
        odds = (logits / self._config.sampling).softmax(-1).cpu()
        return torch.cat([torch.multinomial(each, 1, generator=draw) for each, draw in zip(odds, draws, strict=True)])


def counted_tokens(inputs: Inputs, config: TokenLevel) -> Tensor | None:
    """(batch, sequence), true where a token counts; None where all do. Raises RecipeError where `mask` names no such input."""
    counted = None if config.mask is None else _named(inputs, config.mask) != 0
    if config.padding is None:
        return counted
    real = tokens_of(inputs, config.mask) != config.padding
    return real if counted is None else counted & real


def tokens_of(inputs: Inputs, mask: str | int | None) -> Tensor:
    """Of the inputs (batch, sequence) of whole numbers that aren't the mask `input_ids`, else the first. Raises TaskError where
    there is none.
    """
    masked = None if mask is None else _named(inputs, mask)
    found = {
        name: tensor
        for name, tensor in _items(inputs)
        if tensor is not masked and isinstance(tensor, Tensor) and _is_tokens(tensor)
    }
    if found:
        return found.get("input_ids", next(iter(found.values())))
    raise TaskError("a language model takes tokens (batch, sequence) of whole numbers", got="none", remedy="leave soft= out")


def _is_tokens(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool


def _items(inputs: Inputs) -> list[tuple[str | int, Any]]:
    if isinstance(inputs, dict):
        return list(inputs.items())
    return list(enumerate(inputs if isinstance(inputs, tuple) else (inputs,)))


def _named(inputs: Inputs, name: str | int) -> Tensor:
    items = dict(_items(inputs))
    found = items.get(name)
    if not isinstance(found, Tensor) or found.dim() != 2:
        raise RecipeError(
            "mask must be an input (batch, sequence)",
            got=repr(name),
            remedy="inputs are " + ", ".join(repr(key) for key in items),
        )
    return found


def _cut(tensor: Tensor, whole: Tensor, rows: Tensor, length: int) -> Tensor:
    """Of tensors (batch, ...) the rows, of those (batch, sequence, ...) the first `length` positions."""
    if tensor.dim() == 0 or len(tensor) != len(whole):
        return tensor
    kept = tensor[rows]
    return kept[:, :length] if tensor.shape[:2] == whole.shape else kept


def _replaced(inputs: Inputs, tokens: Tensor, mask: str | int | None) -> Inputs:
    """The inputs with these tokens, and a mask of ones."""
    old, masked = tokens_of(inputs, mask), None if mask is None else _named(inputs, mask)
    replaced: Inputs = apply_tensors(inputs, lambda t: tokens if t is old else torch.ones_like(t) if t is masked else t)
    return replaced


def _until(tokens: Tensor, config: SequenceLevel) -> Tensor:
    """True after the prompt, up to the first `end` token and with it."""
    written = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens) >= config.prompt
    if config.end is None:
        return written
    ended = ((tokens == config.end) & written).int().cumsum(1) - ((tokens == config.end) & written).int()
    return written & (ended == 0)

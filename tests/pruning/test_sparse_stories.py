"""The methods in their published order on a language model: stories260K, calibrated on Shakespeare, measured on its own stories.

Orders as in Frantar, Alistarh (arXiv:2301.00774, table 1) and Sun et al. (arXiv:2306.11695, table 3), there on models of 1 to 70
billion parameters.
"""

from types import ModuleType

import pytest

import paredown
from benchmarks import stories
from benchmarks.sparsity import layer_error
from paredown import Sparsify


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_sparsegpt_beats_wanda_and_wanda_magnitude_on_text_not_seen(shared_data: ModuleType, pattern: str) -> None:
    llama = stories.model()
    seen, unseen = stories.text_rows("tinyshakespeare", 64), stories.sampled_rows(llama, 32, seed=5)
    task = stories.task(llama, seen, unseen)
    sparse = [
        paredown.sparsify(task, Sparsify(pattern=pattern, method=method, samples=64))  # type: ignore[arg-type]  # its literals
        for method in ("sparsegpt", "wanda", "magnitude")
    ]
    perplexities = [stories.perplexity(model, unseen) for model in (llama, *sparse)]
    errors = [layer_error(llama, model, unseen) for model in sparse]
    assert perplexities == sorted(perplexities)
    assert errors == sorted(errors)


def test_the_tokenizer_gives_the_published_tokens(shared_data: ModuleType) -> None:
    """llama2.c's test case for this tokenizer's sibling: whole words where there are, bytes where not."""
    tokens = stories.encode("Once upon a time")
    names = list(stories._vocabulary())
    assert b"".join(names[token] for token in tokens) == b" Once upon a time"
    assert stories.encode("\n") == [stories.encode(" ")[0], 10 + 3]

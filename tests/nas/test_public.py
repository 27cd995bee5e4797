"""What a user finds by name, and the page that explains it."""

import pathlib
import re

import paredown
from paredown import nas

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "search.md"


def test_every_name_of_the_namespace_is_there() -> None:
    assert paredown.nas is nas
    assert all(getattr(nas, name) is not None for name in nas.__all__)
    assert set(nas.__all__) == set(nas._HOME)
    assert not hasattr(nas, "spaces")


def test_the_example_of_a_space_of_ones_own_runs_as_the_page_shows_it() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[:1]
    names: dict[str, object] = {}
    exec(compile(example, PAGE.name, "exec"), names)  # our own page
    result = names["result"]
    assert isinstance(result, nas.SearchResult)
    assert result.best.values == {"operator": "conv", "width": 64, "depth": 1}
    assert result.best.validation == {"accuracy": 89.0, "params": 4096.0}


def test_names_that_the_page_mentions_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    mentioned = set(re.findall(r"`([A-Z][A-Za-z0-9]+)`", text))
    assert {"Choice", "Surrogate", "TrainingEvaluator"} <= mentioned
    assert mentioned <= {*nas.__all__, *paredown.__all__}

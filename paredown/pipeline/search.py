"""`paredown.search`: a search whose result can draw itself."""

import pathlib
from collections.abc import Sequence

from paredown.nas.evaluators.evaluator import Evaluator, Function
from paredown.nas.evaluators.executor import Executor
from paredown.nas.outcome import SearchResult
from paredown.nas.page import search_report
from paredown.nas.problem import ACCURACY, Limit, Objective, SearchEffort
from paredown.nas.search import search as run_search
from paredown.nas.space import Space
from paredown.nas.strategies.strategy import StrategyFactory
from paredown.nas.strategies.surrogate import Surrogate
from paredown.render.search import render_search


def search(
    space: Space,
    evaluate: "Evaluator | Function | Executor",
    *,
    strategy: StrategyFactory = Surrogate,
    effort: int | str | SearchEffort = 100,
    objectives: Sequence[Objective] = ACCURACY,
    limits: Sequence[Limit] = (),
    seed: int = 0,
    store: str | pathlib.Path | None = None,
) -> SearchResult:
    """The best architectures of `space` by what `evaluate` says of them.

    evaluate: a function of an architecture's values, an Evaluator, or an Executor around either (`Processes(f, workers=2)`).
    strategy: a strategy's class, or `functools.partial(PPO, rollout=16)`.
    effort: 200, "200 evaluations" or "20000 s"; an evaluation that would end after the effort's seconds doesn't count.
    store: a file; the search goes on from what it holds. `save_html(path)` of the result writes its page.
    Raises SearchError where no evaluation succeeded, or an objective names a metric that isn't there.
    """
    found = run_search(
        space, evaluate, strategy=strategy, effort=effort, objectives=objectives, limits=limits, seed=seed, store=store
    )
    return found.with_renderer(lambda result: render_search(search_report(result)))

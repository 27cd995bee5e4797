"""Zero-cost proxies as an evaluator: one batch through an untrained network, no training (`source="proxy"`)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, assert_never, get_args

from torch import nn

from paredown.core.errors import SearchError
from paredown.measure.cost import count_macs, count_parameters
from paredown.nas.evaluators.evaluator import Job, Outcome, Values, named
from paredown.nas.evaluators.proxies.jacov import jacov
from paredown.nas.evaluators.proxies.naswot import naswot
from paredown.nas.evaluators.proxies.synflow import synflow
from paredown.nas.evaluators.proxies.zen import zen
from paredown.nas.problem import Source
from paredown.task.batches import Inputs
from paredown.train.seeds import seeded

Proxy = Literal["params", "macs", "naswot", "synflow", "jacov", "zen"]


def proxy_score(name: Proxy, model: nn.Module, inputs: Inputs) -> float:
    """inputs: a batch of 2 or more samples of training data. params and macs are counts, the others scores."""
    match name:
        case "params":
            return float(count_parameters(model))
        case "macs":
            return float(count_macs(model, inputs))
        case "naswot":
            return naswot(model, inputs)
        case "synflow":
            return synflow(model, inputs)
        case "jacov":
            return jacov(model, inputs)
        case "zen":
            return zen(model, inputs)
    assert_never(name)


@dataclass(frozen=True)
class ProxyEvaluator:
    """build: values -> untrained network; inputs: () -> one batch; both module-level functions. Metrics: the proxies by name.

    Raises SearchError for a proxy that there isn't.
    """

    build: Callable[[Values], nn.Module]
    inputs: Callable[[], Inputs]
    proxies: tuple[Proxy, ...] = ("naswot", "synflow")
    source: Source = "proxy"
    fidelities: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for proxy in self.proxies:
            if proxy not in get_args(Proxy):
                raise SearchError("proxies are known by name", got=proxy, remedy=f"one of {', '.join(get_args(Proxy))}")

    @property
    def name(self) -> str:
        return f"{', '.join(self.proxies)} of {named(self.build)} on {named(self.inputs)}"

    def evaluate(self, job: Job) -> Outcome:
        start = time.perf_counter()
        with seeded(job.seed):
            model = self.build(job.values)
            inputs = self.inputs()
            metrics: dict[str, float] = {proxy: proxy_score(proxy, model, inputs) for proxy in self.proxies}
        return Outcome(metrics, time.perf_counter() - start)

"""Architecture search: spaces as data, strategies that ask and tell, evaluators that a process can run.

What `paredown.search` takes is here by name, loaded when first used: `from paredown.nas import Space, Choice, PPO`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paredown.nas.composite import per_layer, product, split
    from paredown.nas.dimensions import ActiveIf, AtMost, Choice, Forbid, Int, Ordinal
    from paredown.nas.evaluators.blocks import BlockLatency, measure_blocks
    from paredown.nas.evaluators.evaluator import Evaluator, FunctionEvaluator, Job, Outcome
    from paredown.nas.evaluators.executor import Processes, Serial
    from paredown.nas.evaluators.halving import Rung, successive_halving
    from paredown.nas.evaluators.proxies.evaluator import ProxyEvaluator
    from paredown.nas.evaluators.supernet import SupernetEvaluator, train_supernet
    from paredown.nas.evaluators.table import Table, cell201_table, from_nats_bench
    from paredown.nas.evaluators.training import Data, TrainingEvaluator
    from paredown.nas.outcome import Found, SearchResult
    from paredown.nas.problem import Limit, Objective, SearchEffort
    from paredown.nas.space import Space
    from paredown.nas.strategies.genetic import Genetic
    from paredown.nas.strategies.local_search import LocalSearch
    from paredown.nas.strategies.nsga2 import NSGA2
    from paredown.nas.strategies.optuna import Optuna
    from paredown.nas.strategies.ppo import PPO
    from paredown.nas.strategies.random import Random
    from paredown.nas.strategies.regularized_evolution import RegularizedEvolution
    from paredown.nas.strategies.reinforce import Reinforce
    from paredown.nas.strategies.starting import starting_with
    from paredown.nas.strategies.surrogate import Surrogate

_HOME = {
    "Space": "space", "Choice": "dimensions", "Ordinal": "dimensions", "Int": "dimensions", "Forbid": "dimensions",
    "AtMost": "dimensions", "ActiveIf": "dimensions", "product": "composite", "per_layer": "composite", "split": "composite",
    "Objective": "problem", "Limit": "problem", "SearchResult": "outcome", "Found": "outcome",
    "Evaluator": "evaluators.evaluator", "FunctionEvaluator": "evaluators.evaluator", "Job": "evaluators.evaluator",
    "Outcome": "evaluators.evaluator", "Processes": "evaluators.executor", "Rung": "evaluators.halving",
    "successive_halving": "evaluators.halving", "Table": "evaluators.table",
    "from_nats_bench": "evaluators.table", "ProxyEvaluator": "evaluators.proxies.evaluator",
    "SupernetEvaluator": "evaluators.supernet", "train_supernet": "evaluators.supernet",
    "BlockLatency": "evaluators.blocks", "measure_blocks": "evaluators.blocks", "Data": "evaluators.training",
    "TrainingEvaluator": "evaluators.training", "Genetic": "strategies.genetic", "LocalSearch": "strategies.local_search",
    "NSGA2": "strategies.nsga2", "Optuna": "strategies.optuna", "PPO": "strategies.ppo", "Random": "strategies.random",
    "RegularizedEvolution": "strategies.regularized_evolution", "Reinforce": "strategies.reinforce",
    "Surrogate": "strategies.surrogate", "starting_with": "strategies.starting",
    "SearchEffort": "problem", "Serial": "evaluators.executor", "cell201_table": "evaluators.table",
}  # fmt: skip

__all__ = [
    "NSGA2",
    "PPO",
    "ActiveIf",
    "AtMost",
    "BlockLatency",
    "Choice",
    "Data",
    "Evaluator",
    "Forbid",
    "Found",
    "FunctionEvaluator",
    "Genetic",
    "Int",
    "Job",
    "Limit",
    "LocalSearch",
    "Objective",
    "Optuna",
    "Ordinal",
    "Outcome",
    "Processes",
    "ProxyEvaluator",
    "Random",
    "RegularizedEvolution",
    "Reinforce",
    "Rung",
    "SearchEffort",
    "SearchResult",
    "Serial",
    "Space",
    "SupernetEvaluator",
    "Surrogate",
    "Table",
    "TrainingEvaluator",
    "cell201_table",
    "from_nats_bench",
    "measure_blocks",
    "per_layer",
    "product",
    "split",
    "starting_with",
    "successive_halving",
    "train_supernet",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'paredown.nas' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"paredown.nas.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""Optuna's samplers as a strategy (optional: needs the package optuna). Dimensions become categorical or integer parameters.

Its state is the list of what was asked and told; loading it tells a new study the same again, in order.
"""

from collections.abc import Sequence
from typing import Any

from paredown.core.errors import MissingExtraError
from paredown.nas.dimensions import Choice
from paredown.nas.problem import Problem, Proposal, Result
from paredown.nas.space import Architecture
from paredown.nas.strategies.memory import Memory, dump, restore
from paredown.nas.strategies.strategy import State


class Optuna:
    """sampler: of optuna, for example `optuna.samplers.TPESampler(seed=0)`; None: TPE, seeded by the problem."""

    def __init__(self, problem: Problem, *, sampler: Any = None) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError("this strategy needs optuna", remedy="pip install optuna") from error
        self.optuna = optuna
        self.memory = Memory(problem)
        names = [dimension.name for dimension in problem.space.dimensions]
        self.distributions = {
            name: optuna.distributions.CategoricalDistribution(tuple(range(size)))
            if isinstance(dimension, Choice)
            else optuna.distributions.IntDistribution(0, size - 1)
            for name, dimension, size in zip(names, problem.space.dimensions, problem.space.sizes, strict=True)
        }
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            directions=["minimize"] * len(problem.objectives),
            sampler=sampler or optuna.samplers.TPESampler(seed=problem.seed, **self._constrained()),
        )
        optuna.logging.set_verbosity(verbosity)
        self.told: list[Result] = []

    def ask(self, n: int) -> list[Proposal]:
        return self.memory.propose(n, self._draw)

    def tell(self, results: Sequence[Result]) -> None:
        """Each becomes a finished trial: what optuna proposed and what the search evaluated need not be the same."""
        self.memory.note(results)
        self.told += results
        problem, optuna = self.memory.problem, self.optuna
        costs, violations = problem.costs(results), problem.violations(results)
        for result, cost, violation in zip(results, costs, violations, strict=True):
            state = optuna.trial.TrialState.FAIL if result.failed else optuna.trial.TrialState.COMPLETE
            trial = optuna.trial.create_trial(
                params=dict(zip(self.distributions, result.architecture, strict=True)),
                distributions=self.distributions,
                values=None if result.failed else cost.tolist(),
                user_attrs={"violation": float(violation)},
                system_attrs={} if result.failed else {"constraints": (float(violation),)},
                state=state,
            )
            self.study.add_trial(trial)

    def _draw(self) -> Architecture:
        problem = self.memory.problem
        trial = self.study.ask({**self.distributions})
        self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)  # its result comes back as a trial of its own
        drawn: Architecture = tuple(int(trial.params[name]) for name in self.distributions)
        return drawn if problem.space.allows(drawn) else self.memory.uniform()

    def _constrained(self) -> dict[str, Any]:
        return {"constraints_func": lambda trial: (trial.user_attrs["violation"],)} if self.memory.problem.limits else {}

    def state_dict(self) -> State:
        return {"memory": self.memory.state_dict(), "told": dump(self.told)}

    def load_state_dict(self, state: State) -> None:
        self.tell(restore(state["told"]))
        self.memory.load_state_dict(state["memory"])

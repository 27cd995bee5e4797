"""A multiple-choice knapsack, exactly: one option a unit, least loss, cost at most a limit (scipy's HiGHS).

minimize  sum_u sum_k loss[u][k] x[u][k]
s.t.      sum_u sum_k cost[u][k] x[u][k] <= limit,   sum_k x[u][k] = 1,   x in {0, 1}
"""

from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.sparse
from numpy.typing import NDArray

Column = NDArray[np.float64]  # (options,)

_SECONDS = 20.0  # a problem of a few hundred options takes milliseconds; what is found by then is used


def knapsack(loss: Sequence[Column], cost: Sequence[Column], limit: float) -> list[int] | None:
    """The option of each unit; None where none meets the limit. loss, cost: (options,) per unit; costs may be negative."""
    cheapest = sum(float(c.min()) for c in cost)
    if cheapest > limit:
        return None
    sizes = [len(column) for column in loss]
    flat_loss, flat_cost = np.concatenate(loss), np.concatenate(cost)
    unit = np.repeat(np.arange(len(sizes)), sizes)
    one = scipy.sparse.csr_array((np.ones(len(unit)), (unit, np.arange(len(unit)))))
    # Scaled to 1, since HiGHS's tolerances are absolute.
    weight, value = max(float(np.abs(flat_cost).max()), 1e-300), max(float(np.abs(flat_loss).max()), 1e-300)
    constraints = [
        scipy.optimize.LinearConstraint(flat_cost[None] / weight, ub=limit / weight),
        scipy.optimize.LinearConstraint(one, 1, 1),
    ]
    found = scipy.optimize.milp(
        flat_loss / value,
        integrality=np.ones(len(unit), dtype=np.int64),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": _SECONDS, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        return [int(c.argmin()) for c in cost]  # feasible, as tested above, up to the solver's tolerance
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [int(found.x[start : start + size].argmax()) for start, size in zip(starts, sizes, strict=True)]

"""Bayesian ridge regression in its dual form, with samples of the whole posterior function (Wilson et al., arXiv:2002.09309,
eq. 13).

    f(x) = w . phi(x),  w ~ N(0, I),  y = f(x) + noise of variance s
    sample: f = w . phi + phi X' (X X' + s I)^-1 (y - X w - e),  w and e drawn from their priors

X (n, features) are the rows that were seen, n a few hundred; s maximizes the marginal likelihood over a grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float32]
Vector: TypeAlias = NDArray[np.float64]
_NOISES = 10.0 ** np.arange(-4, 1.01, 0.5)  # as shares of the mean prior variance


@dataclass(frozen=True)
class Scale:
    """A monotone map of a metric's values that draws in both tails: arcsinh of the distance to the median in quartile ranges."""

    middle: float
    spread: float
    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Vector) -> "Scale":
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        spread = float(high - low) or float(values.std()) or 1.0
        bent = np.arcsinh((values - middle) / spread)
        return cls(float(middle), spread, float(bent.mean()), float(bent.std()) or 1.0)

    def forward(self, values: Vector) -> Vector:
        """To mean 0, standard deviation 1 over the values that the scale was made of."""
        found: Vector = (np.arcsinh((np.asarray(values) - self.middle) / self.spread) - self.mean) / self.deviation
        return found

    def backward(self, scaled: Vector) -> Vector:
        """The inverse."""
        found: Vector = self.middle + self.spread * np.sinh(np.asarray(scaled) * self.deviation + self.mean)
        return found

    def slope(self, values: Vector) -> Vector:
        """How fast `forward` rises at the values."""
        found: Vector = 1 / (np.hypot(np.asarray(values) - self.middle, self.spread) * self.deviation)
        return found


class Ridge:
    """rows (n, features) float32; the posterior of several targets over the same rows."""

    def __init__(self, rows: Matrix) -> None:
        self.rows = rows
        gram = (rows @ rows.T).astype(np.float64)
        eigenvalues, self.vectors = np.linalg.eigh(gram)
        self.eigenvalues = np.maximum(eigenvalues, 0.0)
        self.unit = max(float(self.eigenvalues.mean()), 1e-12)

    def noise(self, target: Vector) -> tuple[float, float]:
        """Noise s relative to a prior of variance v, and v: at the largest marginal likelihood. target (n,), centered."""
        turned = (self.vectors.T @ target) ** 2
        best = (np.inf, 0.0, 0.0)
        for share in _NOISES:
            spectrum = self.eigenvalues + share * self.unit
            variance = float((turned / spectrum).mean())
            evidence = len(target) * np.log(variance + 1e-12) + float(np.log(spectrum).sum())
            best = min(best, (evidence, share * self.unit, variance))
        return best[1], best[2]

    def mean(self, rows: Matrix, target: Vector) -> Vector:
        """The posterior mean at `rows` (m, features): (m,)."""
        noise, _ = self.noise(target)
        weights = self.rows.T @ self._solve(target, noise).astype(np.float32)
        return (rows @ weights).astype(np.float64)

    def samples(self, rows: Matrix, targets: Sequence[Vector], draws: int, random: np.random.Generator) -> list[Matrix]:
        """For each target (m, draws): as many functions from its posterior, at `rows` (m, features)."""
        weights = []
        for target in targets:
            noise, variance = self.noise(target)
            prior = random.standard_normal((self.rows.shape[1], draws)) * np.sqrt(variance)
            error = random.standard_normal((len(target), draws)) * np.sqrt(variance * noise)
            residual = target[:, None] - self.rows @ prior - error
            weights.append(prior + self.rows.T @ self._solve(residual, noise))
        drawn = rows @ np.concatenate(weights, axis=1).astype(np.float32)
        return [drawn[:, i * draws : (i + 1) * draws] for i in range(len(targets))]

    def _solve(self, target: Vector, noise: float) -> Vector:
        """(X X' + noise I)^-1 target."""
        spectrum = 1 / (self.eigenvalues + noise)
        turned = self.vectors.T @ target
        found: Vector = self.vectors @ (spectrum.reshape(-1, *[1] * (turned.ndim - 1)) * turned)
        return found

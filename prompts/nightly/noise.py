"""How figures scatter from night to night where nothing has changed.

The model, on the natural logarithm of a figure: a level, plus the figure's own error of that night, plus what nights differ by beside it: of one spread, each night
resembling the one before it, and now and then a night that is several times as far off. The spread of a series is not known beforehand; `Noise` says what it may be, and every
night that is measured says more.

`SHIPPED` is an assumption and no measurement: nobody has measured a year of nights with this meter. It decides how soon a young history may speak, and what
`python -m benchmarks.nightly` counts false alarms under.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Noise:
    spread: float
    """Median over series of the standard deviation between nights; 0.01 is about 1 %."""
    spread_factor: float
    """What one standard deviation among series multiplies the spread by; log-normal."""
    correlation: float
    """Of a night with the one before it."""
    outliers: float
    """Share of nights that are off by a larger spread,"""
    outlier_factor: float
    """this many times the common one."""

    def grid(self, points: int = 64) -> tuple[Array, Array]:
        """Spreads and the logarithms of their weights, both (points,).

        Weights are Student's with 4 degrees of freedom and reach 12 standard deviations up, not the normal distribution's: nights that scatter ten times as much as
        any were expected to shall be believed.
        """
        steps = np.linspace(-4, 12, points)
        return self.spread * self.spread_factor**steps, -2.5 * np.log1p(steps**2 / 4)

    def resemblance(self, nights: int) -> Array:
        """(nights, nights) correlation of nights in their order; a night that was left out counts for none."""
        order = np.arange(nights)
        return np.asarray(self.correlation ** np.abs(order[:, None] - order[None, :]), np.float64)

    def draw(self, generator: np.random.Generator, series: int, nights: int, error: float | Array) -> Array:
        """(series, nights) logarithms about a level of 0, as the model says, each with its own error of standard deviation `error`: of all, or of each."""
        spreads = self.spread * self.spread_factor ** generator.standard_normal((series, 1))
        alike = generator.standard_normal((series, nights)) @ np.linalg.cholesky(self.resemblance(nights)).T
        far = generator.random((series, nights)) < self.outliers
        farther = math.sqrt(self.outlier_factor**2 - 1) * generator.standard_normal((series, nights))
        drawn: Array = spreads * (alike + np.where(far, farther, 0.0)) + error * generator.standard_normal(
            (series, nights)
        )
        return drawn


SHIPPED: Final = Noise(spread=0.005, spread_factor=1.5, correlation=0.3, outliers=0.02, outlier_factor=3.0)

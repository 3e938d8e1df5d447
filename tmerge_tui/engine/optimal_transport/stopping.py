"""When an iteration ends: the same three numbers for feature plans, layer plans and every solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tmerge_tui.engine.optimal_transport.marginals import Marginal

Measure = Literal["relative", "absolute"]


@dataclass(frozen=True)
class Stopping:
    """After `max_iterations`, or below `tolerance`; a tolerance of 0 asks for a fixed number of iterations (A.3)."""

    max_iterations: int = 200
    tolerance: float = 1e-6
    measure: Measure = "relative"  # sum |Q1 - a|, and single channels bounded; or the paper's max |Q1 - a|

    def relative(self, a: Marginal, b: Marginal) -> float:
        """The tolerance as a share of the marginals' entries."""
        return self.tolerance if self.measure == "relative" else self.tolerance * max(a.sharpest, b.sharpest)

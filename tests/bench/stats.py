"""What is told of a number of measurements."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Sample:
    """Measurements of one thing.

    Attributes:
        values: What was measured, in one unit; an endless one (``inf``) was given up on.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median; endless when half of the measurements were."""
        return self.quantile(0.5)

    @property
    def mean(self) -> float:
        """The mean; endless when one of the measurements was."""
        return sum(self.values) / len(self.values)

    @property
    def given_up(self) -> int:
        """How many measurements came to no end."""
        return sum(map(math.isinf, self.values))

    def quantile(self, share: float) -> float:
        """Return the value below which a share (0-1) of the measurements is, between neighbours in proportion."""
        ordered = sorted(self.values)
        place = share * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        return low if low == high else low + (high - low) * (place - math.floor(place))

    def exceeds(self, other: Sample) -> tuple[float, float]:
        """Compare with another sample (the Mann-Whitney U test).

        Returns:
            The chance that one of these measurements is the greater one, ties halved: 0.5 where the two cannot be told
            apart; and half the width of its 95 % interval where they cannot.
        """
        pairs = [(one > two) + 0.5 * (one == two) for one in self.values for two in other.values]
        ours, theirs = len(self.values), len(other.values)
        return sum(pairs) / len(pairs), 1.96 * math.sqrt((ours + theirs + 1) / (12 * ours * theirs))

    def as_json(self) -> dict[str, object]:
        """Return all of it, with None for what is endless."""
        finite = {
            "median": self.median,
            "mean": self.mean,
            "p25": self.quantile(0.25),
            "p75": self.quantile(0.75),
            "p99": self.quantile(0.99),
        }
        rounded = {name: round(value, 4) if math.isfinite(value) else None for name, value in finite.items()}
        values = [round(value, 4) if math.isfinite(value) else None for value in self.values]
        return {**rounded, "runs": len(values), "given_up": self.given_up, "values": values}


@dataclass(frozen=True)
class Fit:
    """A line through times over round-trip times.

    Attributes:
        fixed_s: What the machine costs, in seconds: the line's value at no distance.
        round_trips: What the design costs: the line's slope.
    """

    fixed_s: float
    round_trips: float

    def at(self, rtt_ms: float) -> float:
        """Return the line's seconds at a round-trip time in milliseconds."""
        return self.fixed_s + self.round_trips * rtt_ms / 1000


def fit(times_s: Mapping[float, float]) -> Fit:
    """Fit a line through times in seconds, by round-trip time in milliseconds: least squares."""
    line = statistics.linear_regression([rtt_ms / 1000 for rtt_ms in times_s], list(times_s.values()))
    return Fit(line.intercept, line.slope)

"""What the bench makes of its measurements."""

from __future__ import annotations

import math

import pytest

from bench.keystrokes import trace
from bench.stats import Sample, fit

_NEVER = float("inf")


@pytest.mark.parametrize(
    ("values", "median", "mean"),
    [
        ((3.0, 1.0, 2.0), 2.0, 2.0),
        ((4.0, 1.0, 2.0, 3.0), 2.5, 2.5),
        ((5.0,), 5.0, 5.0),
        ((1.0, 2.0, _NEVER), 2.0, _NEVER),
        ((1.0, _NEVER, _NEVER), _NEVER, _NEVER),
        ((_NEVER, _NEVER), _NEVER, _NEVER),
    ],
)
def test_median_and_mean(values: tuple[float, ...], median: float, mean: float) -> None:
    """What was given up on counts as longer than all else, and is never left out."""
    sample = Sample(values)
    assert (sample.median, sample.mean) == (median, mean)
    assert sample.given_up == sum(math.isinf(value) for value in values)


def test_quantiles_lie_between_neighbours() -> None:
    """The ends are the smallest and the largest, and a place between two is in proportion."""
    sample = Sample(tuple(float(value) for value in range(101)))
    assert [sample.quantile(share) for share in (0.0, 0.25, 0.99, 1.0)] == [0.0, 25.0, 99.0, 100.0]
    assert Sample((0.0, 10.0)).quantile(0.3) == pytest.approx(3.0)


def test_json_has_no_endless_numbers() -> None:
    """JSON has no infinity: what was given up on is null there, and counted."""
    told = Sample((1.0, _NEVER)).as_json()
    assert (told["values"], told["given_up"], told["mean"]) == ([1.0, None], 1, None)


def test_the_line_through_logins() -> None:
    """Half a second and six round trips are found again."""
    line = fit({rtt_ms: 0.5 + 6 * rtt_ms / 1000 for rtt_ms in (30.0, 100.0, 300.0)})
    assert line.fixed_s == pytest.approx(0.5)
    assert line.round_trips == pytest.approx(6.0)


def test_the_trace_is_the_same_each_time() -> None:
    """All ways are typed on alike, in every run, with pauses that a person makes."""
    made = trace(500)
    assert made == trace(500)
    assert len(made) == 500
    assert all(0 < pause_s <= 2 for pause_s, _ in made)
    assert 0.12 < Sample(tuple(pause_s for pause_s, _ in made)).median < 0.25

"""What the bench makes of its measurements."""

from __future__ import annotations

import io
import json
import math
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from bench import cost, keystrokes, load, logins
from bench.goals import goals
from bench.keystrokes import trace
from bench.report import Results
from bench.siege import KINDS, Siege
from bench.soak import COUNTS, Soak
from bench.stats import Fit, Sample, fit

if TYPE_CHECKING:
    from pathlib import Path

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


def test_samples_are_told_apart() -> None:
    """A half where the two are alike, 1 where all of one are greater; the margin shrinks with the number."""
    one, two = Sample(tuple(map(float, range(40)))), Sample(tuple(map(float, range(40))))
    chance, margin = one.exceeds(two)
    assert (chance, round(margin, 2)) == (0.5, 0.13)
    assert one.exceeds(Sample((-1.0,)))[0] == 1.0
    assert Sample((1.0,)).exceeds(Sample((1.0, 2.0)))[0] == 0.25


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


def test_each_line_that_is_typed_begins_like_no_other_on_the_screen() -> None:
    """An echo is told by its line's beginning: within any 24 lines, no first letter comes twice."""
    first = [line[0] for line in keystrokes.text(5000).split("\r") if line]
    assert len(first) > 80
    assert all(len(set(first[place : place + 24])) == 24 for place in range(len(first) - 24))


def _results(worse: float) -> Results:
    """Make up results that meet all goals where ``worse`` is 1, and none where it is large."""
    lines = {way: Fit(0.5 * worse, 1.5 * worse) for way in (logins.WARM, logins.LATER)}
    lines |= {logins.COLD: Fit(0.5, 7 * worse), logins.SSH: Fit(0.4, 12.0), logins.FIRST_FRAME: Fit(0.25, 1.0)}
    ways = {logins.COLD: Sample((1.0 * worse,)), logins.SSH: Sample((2.0,))}
    ways |= dict.fromkeys((logins.WARM, logins.LATER), Sample((0.6 * worse,)))
    typing = dict.fromkeys(keystrokes.WAYS, Sample((200.0,)))
    typing |= {
        keystrokes.GATEWAY_PREDICTING: Sample((2.0 * worse,)),
        keystrokes.GATEWAY_PLAIN: Sample((200.0 * worse,)),
        keystrokes.SSH: Sample((*(8000.0,) * 9, _NEVER)),
    }
    return Results(
        machine={},
        logins={"30 ms RTT": ways, "100 ms RTT": ways, "300 ms RTT": ways, "100 ms RTT, 5% loss": ways},
        fits=lines,
        bare_login=Sample((0.2,)),
        typing={"100 ms RTT, 29% loss": typing},
        cost={cost.KEY_COMMAND: Sample((20.0 * worse,)), cost.SESSION_HELPER: Sample((30.0 * worse,))},
        rates={load.SESSIONS: 7 / worse, load.BARE_SESSIONS: 10, load.LOGINS: 7 / worse, load.BARE_LOGINS: 10},
        burst=Sample((5.0, 6.0 * worse)),
        burst_connections=int(worse),
        lossy=Sample((*(5.0,) * 199, *(_NEVER,) * int(worse))),
        idle={
            "sessions": 500,
            load.BROKER_MB: 75.0 * worse,
            load.CPU_SHARE: 0.01 * worse,
            load.MOSH_SHARE: 0.05,
            load.PROCESSES_EACH: 3 * worse,
            load.SESSION_MB: 7.0,
            load.PYTHON_LEFT: worse - 1,
        },
    )


def test_goals_are_met_or_not() -> None:
    """Each goal is told as met where it is, and as not met where it is not; only what was measured is told."""
    good, bad = list(goals(_results(1))), list(goals(_results(20)))
    assert len(good) == len(bad) == 28
    assert [goal.name for goal in good if not goal.met] == []
    assert [goal.name for goal in bad if goal.met] == []
    assert list(goals(Results(machine={}))) == []


def test_a_login_that_never_ends_is_not_fast() -> None:
    """Endless measurements meet no goal."""
    results = _results(1)
    results.burst = Sample((5.0, _NEVER))
    results.typing["100 ms RTT, 29% loss"][keystrokes.GATEWAY_PLAIN] = Sample((5.0, _NEVER))
    assert len([goal for goal in goals(results) if not goal.met]) == 4


def test_parts_measured_apart_come_together(tmp_path: Path) -> None:
    """What runs of one part each have written is the same as one run's of all."""
    whole, first, second = _results(1), _results(1), Results(machine={"cores": 2})
    first.typing, second.typing = {}, whole.typing
    together = Results(machine={})
    for number, part in enumerate((first, second)):
        part.write_json(tmp_path / str(number))
        together.read_json(tmp_path / str(number))
    assert vars(together) == {**vars(whole), "machine": {"cores": 2}}


def _soak(**series: list[float]) -> Soak:
    samples = [dict(zip(series, values, strict=True)) for values in zip(*series.values(), strict=True)]
    base = {name: values[0] for name, values in series.items()} | dict.fromkeys(COUNTS, 3.0)
    return Soak(60.0, 1, {}, base, samples, dict(base), {"login": 5}, {"login": 0}, {}, restarted=False)


def test_what_a_soak_calls_growth() -> None:
    """What rises after the first third grows; what only warms up, swings or falls does not."""
    number = 60
    swinging = [10.0 + place % 2 for place in range(number)]
    told = _soak(
        sessions=[1.0] * number,
        leak=[value + place / 20 for place, value in enumerate(swinging)],
        warming=[min(place, 20.0) for place in range(number)],
        swinging=swinging,
        falling=[float(number - place) for place in range(number)],
    )
    assert told.faults == ["leak grows"]
    assert told.an_hour("leak") == pytest.approx(3, abs=0.2)
    assert told.an_hour("warming") == 0


def test_what_else_a_soak_finds() -> None:
    """Something left behind, something that went wrong, sessions that ended, a broker that did."""
    told = _soak(sessions=[1.0] * 29 + [0.0])
    told.after[COUNTS[0]] += 1
    told.failed["login"] = 2
    told.restarted = True
    assert len(told.faults) == 4


@pytest.mark.parametrize(("quiet", "besieged", "refused"), [(1.0, 2.0, 0), (1.0, _NEVER, 4), (_NEVER, 2.0, 4)])
def test_a_siege_counts_refusals(tmp_path: Path, quiet: float, besieged: float, refused: int) -> None:
    """Of each kind of login, in both times; and the table and the file say so."""
    before, meanwhile = ({kind: Sample((0.5, value)) for kind in KINDS} for value in (quiet, besieged))
    told = Siege(10.0, {"cores": 2}, before, meanwhile, {"invented names": 7}, ["first login: Permission denied"])
    assert told.refused == refused
    out = io.StringIO()
    told.print(Console(file=out, width=150))
    assert "invented names: 7 times" in out.getvalue()
    told.write_json(tmp_path / "siege.json")
    assert set(json.loads((tmp_path / "siege.json").read_text())["besieged"]) == set(KINDS)

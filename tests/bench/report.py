"""What was measured, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bench import keystrokes, load, logins, lossy, refusals
from bench.goals import goals
from bench.stats import Fit, Sample

if TYPE_CHECKING:
    from rich.console import Console

_COLORS = {
    logins.COLD: "#1b6ca8",
    logins.WARM: "#18a558",
    logins.LATER: "#0b7a75",
    logins.SSH: "#c0392b",
    logins.MOSH: "#8e44ad",
    logins.JUMP: "#e67e22",
    keystrokes.GATEWAY_PREDICTING: "#18a558",
    keystrokes.MOSH_PREDICTING: "#2c3e50",
    keystrokes.GATEWAY_PLAIN: "#1b6ca8",
    keystrokes.MOSH_PLAIN: "#8e44ad",
    keystrokes.SSH: "#c0392b",
}


def machine() -> dict[str, str | int | float]:
    """Name the machine and what runs on it."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr.split(",")[0].strip()
    mosh = (
        subprocess.run(["mosh", "--version"], capture_output=True, text=True, check=False).stdout.split("[")[0].strip()
    )
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "ssh": ssh,
        "mosh": mosh,
        "load_at_start": round(os.getloadavg()[0], 2),
    }


@dataclass
class Results:
    """All that was measured.

    Attributes:
        machine: Where.
        logins: Times of logins in seconds, by weather.
        fits: The line through each way's times over the round-trip time.
        bare_login: A login on a bare sshd nearby, in seconds.
        typing: Times of echoes in milliseconds, by the share of lost packets.
        cost: Processor time of the helpers in milliseconds.
        rates: Logins per second.
        rate_cpu_ms: The gateway's, or the bare sshd's, processor time for each of these, in milliseconds.
        bare_burst: Times of simultaneous logins on a bare sshd, in seconds.
        burst: The same on the gateway.
        burst_connections: The most logins that the remote saw of one user meanwhile.
        burst_cpu_ms: The gateway's processor time for each of them, in milliseconds.
        idle: What idle sessions cost.
        refusals: Times of refusals in seconds, by what else is going on, and by state and kind of name.
        lossy: Times of first logins, in seconds, where many packets are lost.
        lossy_connections: The connections that the remote saw for each of these.
    """

    machine: dict[str, str | int | float] = field(default_factory=machine)
    logins: dict[str, dict[str, Sample]] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)
    bare_login: Sample | None = None
    typing: dict[str, dict[str, Sample]] = field(default_factory=dict)
    cost: dict[str, Sample] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    rate_cpu_ms: dict[str, float] = field(default_factory=dict)
    bare_burst: Sample | None = None
    burst: Sample | None = None
    burst_connections: int = 0
    burst_cpu_ms: float = 0.0
    idle: dict[str, float] = field(default_factory=dict)
    refusals: dict[str, dict[str, Sample]] = field(default_factory=dict)
    lossy: Sample | None = None
    lossy_connections: float = 0.0

    def write_json(self, path: Path) -> None:
        """Write everything, each measurement included."""

        def plain(value: Any) -> Any:
            if isinstance(value, Sample):
                return value.as_json()
            if isinstance(value, Fit):
                return asdict(value)
            if isinstance(value, dict):
                return {key: plain(its) for key, its in value.items()}
            return round(value, 4) if isinstance(value, float) else value

        # A line for each part: there are thousands of numbers.
        parts = [f"{json.dumps(name)}: {json.dumps(plain(value))}" for name, value in vars(self).items()]
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n")

    def read_json(self, path: Path) -> None:
        """Take over what `write_json` wrote, as far as something was measured then."""

        def lively(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            if "values" in value:
                return Sample(tuple(math.inf if each is None else each for each in value["values"]))
            if "round_trips" in value:
                return Fit(**value)
            return {key: lively(its) for key, its in value.items()}

        for name, value in json.loads(path.read_text()).items():
            if value:
                setattr(self, name, lively(value))

    def print(self, console: Console) -> None:
        """Print one table, and the goals beside what was measured."""
        console.print(", ".join(f"{name} {value}" for name, value in self.machine.items()))
        table = Table("what", "way", "median", "25 % - 75 %", "of ssh's", "n", "given up")
        for weather, ways in self.logins.items():
            for way, sample in ways.items():
                table.add_row(
                    f"login, s, {weather}",
                    way,
                    _number(sample.median),
                    _spread(sample),
                    _ratio(sample, ways[logins.SSH]),
                    str(len(sample.values)),
                    str(sample.given_up or ""),
                )
            table.add_section()
        if self.lossy:
            table.add_row(
                f"login, s, {lossy.WEATHER}",
                logins.COLD,
                _number(self.lossy.median),
                f"mean {_number(self.lossy.mean)}, 99 % {_number(self.lossy.quantile(0.99))}",
                "",
                str(len(self.lossy.values)),
                str(self.lossy.given_up or ""),
            )
            table.add_row("", "connections to the remote for each", _number(self.lossy_connections))
            table.add_section()
        for way, line in self.fits.items():
            share = f"{line.round_trips / self.fits[logins.SSH].round_trips:.2f}"
            table.add_row("login = a + n x RTT", way, f"n {line.round_trips:.1f}", f"a {line.fixed_s:.2f} s", share)
        if self.bare_login:
            table.add_row("login, s", "bare sshd nearby", _number(self.bare_login.median), _spread(self.bare_login))
        table.add_section()
        self._add_typing_rows(table)
        self._add_machine_rows(table)
        console.print(table)
        if self.refusals:
            console.print(self._refusal_table())
        wanted = Table("goal", "wanted", "measured", "met")
        for goal in goals(self):
            wanted.add_row(goal.name, goal.wanted, goal.measured, "yes" if goal.met else "NO")
        if wanted.rows:
            console.print(wanted)

    def _add_typing_rows(self, table: Table) -> None:
        for weather, ways in self.typing.items():
            for way, sample in ways.items():
                mean_p99 = f"mean {_number(sample.mean)}, 99 % {_number(sample.quantile(0.99))}"
                table.add_row(
                    f"echo of a key, ms, {weather}",
                    way,
                    _number(sample.median),
                    mean_p99,
                    _ratio(sample, ways[keystrokes.SSH]),
                    str(len(sample.values)),
                    str(sample.given_up or ""),
                )
            if weather.endswith(keystrokes.WORST):
                for way, (median, mean) in keystrokes.PUBLISHED_MS.items():
                    table.add_row("  published", way, _number(median), f"mean {_number(mean)}")
            table.add_section()

    def _add_machine_rows(self, table: Table) -> None:
        for name, sample in self.cost.items():
            table.add_row("CPU, ms", name, _number(sample.median), _spread(sample), "", str(len(sample.values)))
        for name, rate in self.rates.items():
            table.add_row("logins per second", name, _number(rate))
            if name in self.rate_cpu_ms:
                table.add_row("", "CPU for each, ms", _number(self.rate_cpu_ms[name]))
        for name, burst in ((load.BARE_SESSIONS, self.bare_burst), ("gateway, first login of each", self.burst)):
            if burst:
                table.add_row(
                    f"burst of {len(burst.values)}, s",
                    name,
                    _number(burst.median),
                    f"slowest {_number(max(burst.values))}",
                    "",
                    "",
                    str(burst.given_up or ""),
                )
        if self.burst:
            table.add_row("", "gateway's CPU for each, ms", _number(self.burst_cpu_ms))
            table.add_row("", "connections to the remote, a user", str(self.burst_connections))
        for name, value in self.idle.items():
            table.add_row("idle sessions", name, f"{value:.4f}" if 0 < value < 0.1 else _number(value))

    def _refusal_table(self) -> Table:
        table = Table(
            "refusal, s", "name", "median", "25 % - 75 %", "n", "later than nobody's", "where nothing is told"
        )
        for where, kinds in self.refusals.items():
            for name, sample in kinds.items():
                state, _, kind = name.rpartition(", ")
                row = [where, name, _number(sample.median), _spread(sample), str(len(sample.values))]
                if state in refusals.STATES and kind != refusals.NOBODY:
                    chance, margin = sample.exceeds(kinds[f"{state}, {refusals.NOBODY}"])
                    row += [f"{chance:.2f}", f"{0.5 - margin:.2f} - {0.5 + margin:.2f}"]
                table.add_row(*row)
            table.add_section()
        return table

    def plot(self, path: Path, loss: str) -> None:
        """Draw logins over the round-trip time, and the distribution of echoes at one loss."""
        # Only here: tests and demo do without it.
        from matplotlib import rc_context  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415

        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        by_rtt = {float(name.split()[0]): ways for name, ways in self.logins.items() if name.endswith("ms RTT")}
        for way in logins.WAYS:
            medians = [ways[way].median for ways in by_rtt.values()]
            low = [ways[way].median - ways[way].quantile(0.25) for ways in by_rtt.values()]
            high = [ways[way].quantile(0.75) - ways[way].median for ways in by_rtt.values()]
            line = self.fits[way]
            label = f"{way}: {line.fixed_s:.2f} s + {line.round_trips:.1f} RTT"
            left.errorbar(list(by_rtt), medians, [low, high], label=label, color=_COLORS[way], marker="o", capsize=3)
        left.set(title="Login to the remote prompt", xlabel="round-trip time, ms", ylabel="seconds", ylim=(0, None))
        left.legend(fontsize=7)
        for way, sample in self.typing[loss].items():
            # Not each of thousands, or the picture would be as large as the program.
            shares = [place / 100 for place in range(101) if math.isfinite(sample.quantile(place / 100))]
            right.plot([sample.quantile(share) for share in shares], shares, label=way, color=_COLORS[way])
        right.set(
            title=f"Echo of a keystroke, {loss}", xlabel="milliseconds", ylabel="share of keystrokes seen by then"
        )
        right.set_xscale("log")
        right.set_ylim(0, 1)
        right.legend(fontsize=7)
        for axes in (left, right):
            axes.grid(visible=True, alpha=0.3)
        # Text stays text, and the same figures are the same file.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "bench"}):
            figure.savefig(path, metadata={"Date": None})


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "never"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(sample: Sample) -> str:
    return f"{_number(sample.quantile(0.25))} - {_number(sample.quantile(0.75))}"


def _ratio(sample: Sample, reference: Sample) -> str:
    value = sample.median / reference.median
    return f"{value:.2f}" if math.isfinite(value) else "less" if math.isinf(reference.median) else "more"

"""``make bench``: measures the gateway beside ssh, mosh and ``ssh -J`` in the lab, and prints one table."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bench.bare import GREETING, BareSshd
from bench.cost import CostBench
from bench.keystrokes import RTT_MS, TypingBench
from bench.load import LoadBench
from bench.logins import FIRST_FRAME, TTL_S, LoginBench, fits
from bench.lossy import LossyBench
from bench.refusals import TTL_S as REFUSALS_TTL_S
from bench.refusals import RefusalBench
from bench.report import Results
from lab.bench import Lab
from lab.needs import what_is_missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.gateway import Gateway
    from lab.processes import Process

_JUMP_PORT, _FORCED_PORT = 2301, 2302


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        logins: Logins of each way at each round-trip time.
        bad_logins: The same where packets are lost.
        losses: Shares of packets lost each way.
        keystrokes: Keystrokes of each way at each loss.
        worst_keystrokes: The same at the greatest loss, without prediction, on each terminal.
        typists: Terminals of each way there.
        helper_runs: Runs of each helper.
        rate_logins: Logins by which the rate is measured.
        crowd: Users of the burst.
        idle_sessions: Sessions that are watched doing nothing.
        idle_s: For how many seconds.
        refusals: Batches of refused logins.
        lossy_logins: First logins at the greatest loss.
    """

    logins: int = 9
    bad_logins: int = 5
    losses: tuple[float, ...] = (0.01, 0.05, 0.29)
    keystrokes: int = 150
    worst_keystrokes: int = 2500
    typists: int = 6
    helper_runs: int = 25
    rate_logins: int = 100
    crowd: int = 200
    idle_sessions: int = 500
    idle_s: float = 60.0
    refusals: int = 6
    lossy_logins: int = 200


_WHOLE = Effort()
_QUICK = Effort(
    logins=3,
    bad_logins=2,
    losses=(0.05, 0.29),
    keystrokes=60,
    worst_keystrokes=60,
    typists=1,
    helper_runs=7,
    rate_logins=20,
    crowd=30,
    idle_sessions=40,
    idle_s=5.0,
    refusals=1,
    lossy_logins=8,
)
_RTTS_MS = (30.0, 100.0, 300.0)
_AT_ONCE = 6
_BAD_LOSS = 0.2


def _sshd_uid(gateway: Gateway) -> int:
    """Return the uid that the one session on a gateway has."""

    def is_session(process: Process) -> bool:
        return process.name == "mosh-client"

    return next(process.uid for process in gateway.processes() if is_session(process))


def _measure_logins(lab: Lab, effort: Effort, results: Results, say: Callable[[str], None]) -> None:
    jump, bare = BareSshd(lab, _JUMP_PORT, forced=False), BareSshd(lab, _FORCED_PORT, forced=True)
    gateway, forgetful = lab.start_gateway(), lab.start_gateway({"GATEWAY_CACHE_TTL": str(TTL_S)})
    bench = LoginBench(lab, gateway, forgetful, jump, say)
    by_rtt = []
    for rtt_ms in _RTTS_MS:
        logins = bench.measure(effort.logins, rtt_ms=rtt_ms)
        results.logins[f"{rtt_ms:g} ms RTT"] = logins
        by_rtt.append((rtt_ms, {**logins, FIRST_FRAME: bench.first_frames(effort.logins, rtt_ms)}))
    results.fits = fits(by_rtt)
    results.bare_login = bench.local(effort.logins, bare, GREETING)
    for loss in effort.losses:
        # Where ssh gives up each time, more tries take long and tell nothing.
        runs = min(effort.bad_logins, 3) if loss > _BAD_LOSS else effort.bad_logins
        results.logins[f"100 ms RTT, {loss:.0%} loss"] = bench.measure(runs, rtt_ms=100.0, loss=loss)
    results.logins["100 ms RTT, 64 kB/s"] = bench.measure(effort.bad_logins, rtt_ms=100.0, rate_kb_s=64.0)
    user = lab.add_user()
    session = lab.terminal(lab.gateway_argv(gateway, user))
    session.wait_for(user.prompt)
    results.cost = CostBench(lab, gateway, user, _sshd_uid(gateway)).measure(effort.helper_runs, say)
    session.close()


def _measure_typing(lab: Lab, effort: Effort, results: Results, say: Callable[[str], None]) -> None:
    predicting, plain = (lab.start_gateway({"GATEWAY_MOSH_PREDICT": predict}) for predict in ("always", "never"))
    bench = TypingBench(lab, predicting, plain, say)
    for loss in (0.0, *effort.losses):
        few = loss <= _BAD_LOSS
        results.typing[f"{RTT_MS:g} ms RTT, {loss:.0%} loss"] = bench.measure(
            effort.keystrokes if few else effort.worst_keystrokes, loss, 1 if few else effort.typists
        )


def _measure_load(lab: Lab, effort: Effort, results: Results, say: Callable[[str], None]) -> None:
    gateway, bare = lab.start_gateway(), BareSshd(lab, _FORCED_PORT, forced=True)
    bench = LoadBench(lab, gateway, bare, say)
    results.bare_burst = bench.bare_burst(effort.crowd)
    results.burst, results.burst_connections, results.burst_cpu_ms = bench.burst(effort.crowd)
    results.idle = bench.idle(effort.idle_sessions, effort.idle_s)
    results.rates, results.rate_cpu_ms = bench.rates(effort.rate_logins, _AT_ONCE), bench.cpu_ms


def _measure_refusals(lab: Lab, effort: Effort, results: Results, say: Callable[[str], None]) -> None:
    bench = RefusalBench(lab, lab.start_gateway({"GATEWAY_CACHE_TTL": str(REFUSALS_TTL_S)}), say)
    for slow, where in ((False, "100 ms RTT"), (True, "100 ms RTT, one account slow")):
        results.refusals[where] = bench.measure(effort.refusals, 100.0, slow=slow)


def _measure_lossy(lab: Lab, effort: Effort, results: Results, say: Callable[[str], None]) -> None:
    bench = LossyBench(lab, lab.start_gateway(), say)
    results.lossy, results.lossy_connections = bench.measure(effort.lossy_logins)


def _ended(*_: object) -> None:
    """End on SIGTERM or SIGHUP as on Ctrl-C: with everything taken down."""
    raise KeyboardInterrupt


def main() -> int:
    """Measure, and return the exit status."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few of each, in some four minutes")
    parser.add_argument("--only", choices=("logins", "typing", "load", "refusals", "lossy", "nothing"), help="one part")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", nargs="+", default=[], dest="files", help="what earlier runs wrote; first"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture there (.svg or .png)")
    arguments = parser.parse_args()
    if missing := what_is_missing():
        print(f"bench: {missing}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    effort, results, console = (_QUICK if arguments.quick else _WHOLE), Results(), Console(highlight=False, width=150)

    for file in arguments.files:
        results.read_json(file)

    def say(what: str) -> None:
        print(f"bench: {what}", file=sys.stderr, flush=True)

    parts = {
        "logins": _measure_logins,
        "typing": _measure_typing,
        "load": _measure_load,
        "refusals": _measure_refusals,
        "lossy": _measure_lossy,
    }
    for name, measure in parts.items():
        if arguments.only in {None, name}:
            # A lab of its own each, so that no part finds what another left.
            with Lab(rtt_ms=20) as lab:
                measure(lab, effort, results, say)
            if arguments.json:
                results.write_json(arguments.json)
    if arguments.json:
        results.write_json(arguments.json)
    results.print(console)
    if arguments.plot and results.fits and results.typing:
        results.plot(arguments.plot, list(results.typing)[-1])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

"""When what is typed is seen: each keystroke's echo on the client's screen, on the same WAN at the same time."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import TYPE_CHECKING

from bench.stats import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

GATEWAY_PREDICTING, GATEWAY_PLAIN = "gateway, prediction on", "gateway, prediction off"
MOSH_PREDICTING, MOSH_PLAIN = "mosh, direct, prediction on", "mosh, direct, prediction off"
SSH = "ssh, direct"
WAYS = (GATEWAY_PREDICTING, MOSH_PREDICTING, GATEWAY_PLAIN, MOSH_PLAIN, SSH)

RTT_MS = 100.0
WORST = "29% loss"
"""How the weather's name ends in which mosh's authors measured: with 29 % lost each way, half of all round trips."""

PUBLISHED_MS = {SSH: (416.0, 16_800.0), MOSH_PLAIN: (222.0, 329.0)}
"""Median and mean of theirs, in milliseconds (Winstein and Balakrishnan, "Mosh", USENIX ATC 2012, section 4)."""

PATIENCE_S = 300.0
"""How long, in seconds, after the last keystroke its echo is waited for; what is not seen then counts as endless."""

# A letter that somebody might write; mosh's own traces are of real people and not published.
_LETTER = (
    "dear colleague, the figures came in late last night",
    "and i have put them into the table that you made for me",
    "two of them look odd, so please see whether the third row",
    "is what you measured before i send the whole thing round",
)


def text(keystrokes: int) -> str:
    """Return what is typed: no line begins as another does that is still on a screen of 24 lines."""
    lines = (f"{chr(ord('a') + number % 26)}) {line}\r" for number, line in enumerate(itertools.cycle(_LETTER)))
    return "".join(itertools.islice(itertools.chain.from_iterable(lines), keystrokes))


def trace(keystrokes: int, seed: int = 1) -> list[tuple[float, str]]:
    """Make a trace of somebody typing.

    Args:
        keystrokes: How many.
        seed: Decides the pauses.

    Returns:
        Pauses in seconds, each with the key that is hit after it. Pauses are log-normal with a median of 0.15 s, as
        practised typists', longer between words, and a breath after each line.
    """
    chance = random.Random(seed)  # noqa: S311 - the point is that it can be repeated
    keys = text(keystrokes)
    made = []
    for before, key in zip(" " + keys, keys, strict=False):
        pause_s = chance.lognormvariate(-1.9, 0.45) * (1.6 if before == " " else 1.0) + (0.6 if before == "\r" else 0.0)
        made.append((min(pause_s, 2.0), key))
    return made


class _Typist:
    """One person at one terminal.

    Args:
        terminal: Where ``cat`` runs.
        keys: The trace.
    """

    def __init__(self, terminal: Terminal, keys: Sequence[tuple[float, str]]) -> None:
        self._terminal, self._keys = terminal, keys
        self._typed_s: list[float] = []
        self._seen_s: dict[int, float] = {}
        self._done = threading.Event()
        # Each keystroke's place: which line it is on, and at which column. The end of a line is no echo.
        self._places: list[tuple[int, int] | None] = []
        line = column = 0
        self._lines = [""]
        for _, key in keys:
            if key == "\r":
                self._places.append(None)
                self._lines.append("")
                line, column = line + 1, 0
            else:
                self._places.append((line, column))
                self._lines[-1] += key
                column += 1

    def run(self) -> None:
        """Type, and watch."""
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        due_s = time.monotonic()
        for pause_s, key in self._keys:
            due_s += pause_s
            time.sleep(max(0.0, due_s - time.monotonic()))
            self._typed_s.append(time.monotonic())
            self._terminal.type(key)
        self._done.wait(PATIENCE_S)
        self._done.set()
        watcher.join()

    def _watch(self) -> None:
        wanted = {number: place for number, place in enumerate(self._places) if place is not None}
        changed = self._terminal._changed
        while wanted and not self._done.is_set():
            with changed:
                changed.wait(0.2)
                now_s, shown = time.monotonic(), self._terminal.lines
            for number, (line, column) in list(wanted.items())[:200]:
                if number < len(self._typed_s) and self._is_shown(shown, line, column):
                    self._seen_s[number] = now_s
                    del wanted[number]
        self._done.set()

    def _is_shown(self, shown: list[str], line: int, column: int) -> bool:
        text = self._lines[line][: column + 1].rstrip()
        # A blank at the end of a line cannot be seen on the screen, but for what comes after it.
        return bool(text) and any(its.startswith(text) for its in shown)

    def echoes_ms(self) -> list[float]:
        """Return how long each echo took, in milliseconds; blanks are left out, as they cannot be seen."""
        return [
            (self._seen_s.get(number, float("inf")) - self._typed_s[number]) * 1000
            for number, place in enumerate(self._places)
            if place is not None and self._keys[number][1] != " "
        ]


class TypingBench:
    """Times keystrokes.

    Args:
        lab: The lab.
        predicting: A gateway with GATEWAY_MOSH_PREDICT=always.
        plain: One with GATEWAY_MOSH_PREDICT=never.
        say: Told what is going on.
    """

    def __init__(self, lab: Lab, predicting: Gateway, plain: Gateway, say: Callable[[str], None]) -> None:
        """Keep them."""
        self._lab, self._predicting, self._plain, self._say = lab, predicting, plain, say

    def _open(self, way: str, user: User) -> Terminal:
        lab = self._lab
        argv = {
            GATEWAY_PREDICTING: lambda: lab.gateway_argv(self._predicting, user),
            GATEWAY_PLAIN: lambda: lab.gateway_argv(self._plain, user),
            SSH: lambda: lab.direct_ssh_argv(user),
        }.get(way, lambda: lab.direct_mosh_argv(user))()
        predict = "always" if way == MOSH_PREDICTING else "never"
        terminal = lab.terminal(argv, environment={"MOSH_PREDICTION_DISPLAY": predict})
        terminal.wait_for(user.prompt, timeout_s=60)
        terminal.type("clear; exec cat > /dev/null\r")
        terminal.wait_until(lambda its: user.prompt not in its.text, "cat runs", timeout_s=60)
        return terminal

    def measure(self, keystrokes: int, loss: float, at_once: int) -> dict[str, Sample]:
        """Type on all ways, in milliseconds to each echo.

        Args:
            keystrokes: How many for each terminal.
            loss: Share of packets lost each way.
            at_once: How many terminals there are of each way without prediction: chance has less of a say with more.
        """
        self._say(f"typing at {loss:.0%} loss, with prediction")
        echoes = self._type([GATEWAY_PREDICTING, MOSH_PREDICTING], min(keystrokes, 150), loss)
        self._say(f"typing at {loss:.0%} loss, without")
        echoes |= self._type([GATEWAY_PLAIN, MOSH_PLAIN, SSH] * at_once, keystrokes, loss)
        return {way: Sample(tuple(echoes[way])) for way in WAYS}

    def _type(self, ways: Sequence[str], keystrokes: int, loss: float) -> dict[str, list[float]]:
        """Type at the same time on each way named, and return the milliseconds to each echo."""
        with self._lab.wan.weather(rtt_ms=RTT_MS, loss=0.0):
            terminals = [self._open(way, self._lab.add_user()) for way in ways]
            # The same text with other pauses on each terminal of a way, and the same pauses on each way.
            seeds = [ways[:place].count(way) for place, way in enumerate(ways)]
            typists = [
                _Typist(terminal, trace(keystrokes, seed)) for terminal, seed in zip(terminals, seeds, strict=True)
            ]
            with self._lab.wan.weather(loss=loss):
                threads = [threading.Thread(target=typist.run) for typist in typists]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            for terminal in terminals:
                terminal.close()
        echoes: dict[str, list[float]] = {way: [] for way in ways}
        for way, typist in zip(ways, typists, strict=True):
            echoes[way] += typist.echoes_ms()
        return echoes

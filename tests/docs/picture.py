"""``make picture``: draw a login through a gateway over a bad WAN, as the person at the terminal sees it.

The remote host, the WAN, the gateway and the client are the lab's, and real; so is the time that passes. The
picture is an SVG that moves by itself. Each run gives another one, because packets are lost at other moments.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from demo import COMMAND, PROOF
from lab.bench import Lab
from lab.gateway import ADDRESS
from lab.needs import what_is_missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

PICTURE = Path(__file__).parents[2] / "docs" / "login.svg"

RTT_MS = 100
LOSS = 0.05
ROWS, COLUMNS = 5, 76
KEY_S = 0.07
"""Seconds between two keys, as of a fast typist."""
PAUSE_S = 0.8
LAST_S = 4.0
"""Seconds for which the last screen stays before the picture begins again."""

WIDE, HIGH = 8.4, 19
"""Size of a character's cell, in pixels."""
LEFT, TOP = 16, 52


@dataclass(frozen=True)
class Frame:
    """What the screen showed from a moment on.

    Attributes:
        at_s: Seconds since the recording began.
        lines: Its lines, without blanks at their ends.
        cursor: Row and column, both from 0.
    """

    at_s: float
    lines: tuple[str, ...]
    cursor: tuple[int, int]


@dataclass(frozen=True)
class Stay:
    """A line of the screen, and when it was there.

    Attributes:
        row: Its row, from 0.
        text: The line.
        from_s: Seconds since the recording began.
        until_s: Likewise.
    """

    row: int
    text: str
    from_s: float
    until_s: float


class Recorder:
    """Looks at a terminal a hundred times a second, and keeps each screen that is another one.

    Args:
        terminal: The terminal.
    """

    def __init__(self, terminal: Terminal) -> None:
        """Start to look."""
        self.frames: list[Frame] = []
        self._terminal = terminal
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            frame = Frame(time.monotonic() - self._began, tuple(self._terminal.lines), self._terminal.cursor)
            if not self.frames or (frame.lines, frame.cursor) != (self.frames[-1].lines, self.frames[-1].cursor):
                self.frames.append(frame)

    def stop(self) -> float:
        """Look no more, and return the seconds since the beginning."""
        self._over.set()
        self._thread.join()
        return time.monotonic() - self._began


def record(lab: Lab, gateway: Gateway, user: User) -> tuple[list[Frame], float, float]:
    """Log in as a person does.

    Returns:
        What the screen showed; how long all of it took; how long the prompt took after Enter. Both in seconds.
    """
    config = lab.directory / "ssh_config"
    config.write_text(
        f"Host gateway\n HostName {ADDRESS}\n UserKnownHostsFile {gateway.known_hosts}\n"
        f" GlobalKnownHostsFile /dev/null\n IdentitiesOnly yes\n IdentityFile {user.key.private}\n"
    )
    rc = lab.directory / "bashrc"
    rc.write_text(f"PS1='$ '\nssh() {{ command ssh -F {config} \"$@\"; }}\nbind 'set enable-bracketed-paste off'\n")
    terminal = lab.terminal(["bash", "--rcfile", str(rc), "-i"], rows=ROWS, columns=COLUMNS)
    terminal.wait_until(lambda its: its.text == "$", "the shell is there")
    recorder = Recorder(terminal)
    time.sleep(PAUSE_S)
    _type(terminal, f"ssh -p {gateway.port} {user.name}@gateway")
    began = time.monotonic()
    terminal.type("\r")
    terminal.wait_for(user.prompt, timeout_s=60)
    prompt_s = time.monotonic() - began
    time.sleep(PAUSE_S)
    _type(terminal, COMMAND)
    terminal.run("", PROOF, timeout_s=60)
    terminal.wait_until(lambda its: its.text.endswith(user.prompt.rstrip()), "the command has ended")
    time.sleep(PAUSE_S)
    return recorder.frames, recorder.stop(), prompt_s


def _type(terminal: Terminal, text: str) -> None:
    for character in text:
        terminal.type(character)
        time.sleep(KEY_S)
    time.sleep(PAUSE_S / 2)


def stays(frames: list[Frame], end_s: float) -> Iterator[Stay]:
    """Find each line that is not empty, row by row."""
    for row in range(ROWS):
        text, since_s = "", 0.0
        for frame in frames:
            if frame.lines[row] != text:
                if text:
                    yield Stay(row, text, since_s, frame.at_s)
                text, since_s = frame.lines[row], frame.at_s
        if text:
            yield Stay(row, text, since_s, end_s)


def draw(frames: list[Frame], recorded_s: float, caption: str, footer: str) -> str:
    """Draw what was recorded, as one SVG.

    Args:
        frames: What the screen showed.
        recorded_s: Seconds until the recording's end.
        caption: What stands above the screen.
        footer: What stands below it.
    """
    all_s = recorded_s + LAST_S
    width, height = round(LEFT * 2 + WIDE * COLUMNS), TOP + HIGH * ROWS + 40
    lines = "\n".join(_line(stay, frames[0].at_s, all_s) for stay in stays(frames, all_s))
    times_s = [0.0, *(frame.at_s for frame in frames[1:])]
    across = _steps("x", [f"{LEFT + WIDE * frame.cursor[1]:.1f}" for frame in frames], times_s, all_s)
    down = _steps("y", [str(TOP + HIGH * frame.cursor[0] - 14) for frame in frames], times_s, all_s)
    row, column = frames[-1].cursor
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img"
 font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="14">
<title>{escape(caption)}</title>
<rect width="{width}" height="{height}" rx="8" fill="#1e2127"/>
<circle cx="20" cy="18" r="5" fill="#e06c75"/>
<circle cx="38" cy="18" r="5" fill="#e5c07b"/>
<circle cx="56" cy="18" r="5" fill="#98c379"/>
<text x="{width // 2}" y="23" fill="#9aa2b1" text-anchor="middle" font-size="13">{escape(caption)}</text>
<text x="{LEFT}" y="{height - 14}" fill="#9aa2b1" font-size="12">{escape(footer)}</text>
<g fill="#d7dae0" xml:space="preserve">
{lines}
</g>
<rect x="{LEFT + WIDE * column:.1f}" y="{TOP + HIGH * row - 14}" width="{WIDE}" height="18" fill="#d7dae0" opacity=".6">
{across}
{down}
</rect>
</svg>
"""


def _line(stay: Stay, first_s: float, all_s: float) -> str:
    """Draw a line of the screen; what is there at the end is also there where nothing moves."""
    at_end = stay.until_s == all_s
    values, times_s = ["0", "1", "0"], [0.0, stay.from_s, stay.until_s]
    if stay.from_s == first_s:
        values, times_s = ["1", "0"], [0.0, stay.until_s]
    if at_end:
        values, times_s = values[:-1], times_s[:-1]
    moves = _steps("opacity", values, times_s, all_s)
    return (
        f'<text x="{LEFT}" y="{TOP + HIGH * stay.row}" opacity="{int(at_end)}"'
        f' textLength="{WIDE * len(stay.text):.0f}">{moves}{escape(stay.text)}</text>'
    )


def _steps(attribute: str, values: list[str], times_s: list[float], all_s: float) -> str:
    """Let an attribute have one value after the other, each from its time on (SMIL)."""
    moments = ";".join(f"{round(at_s / all_s, 4):g}" for at_s in times_s)
    return (
        f'<animate attributeName="{attribute}" calcMode="discrete" dur="{all_s:.2f}s" repeatCount="indefinite"'
        f' values="{";".join(values)}" keyTimes="{moments}"/>'
    )


def main() -> int:
    """Record, draw, and return the exit status."""
    if missing := what_is_missing():
        print(f"picture: {missing}", file=sys.stderr)
        return 1
    with Lab(rtt_ms=RTT_MS, loss=LOSS) as lab:
        alice, bob = lab.add_user("alice"), lab.add_user("bob")
        gateway = lab.start_gateway()
        # The gateway's very first login differs: it has yet to learn which algorithms the remote host takes.
        lab.terminal(lab.gateway_argv(gateway, bob)).wait_for(bob.prompt, timeout_s=60)
        frames, recorded_s, prompt_s = record(lab, gateway, alice)
    caption = f"Round trip {RTT_MS} ms, {LOSS * 100:.0f} % of packets lost each way"
    footer = f"A real login in real time: {prompt_s:.1f} s from Enter to the remote prompt, alice's first."
    PICTURE.write_text(draw(frames, recorded_s, caption, footer), encoding="utf-8")
    print(f"wrote {PICTURE}: {len(frames)} screens, {PICTURE.stat().st_size} bytes; the prompt took {prompt_s:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

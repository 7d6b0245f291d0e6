"""Nothing is left of those who came and went, nor of those who were refused: ``make soak`` in a few seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.soak import COUNTS, Town, look
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab

_PEOPLE = 3


def test_nothing_is_left_of_logins(make_lab: Callable[..., Lab]) -> None:
    """Processes, open files, homes and files are as many after each user's second visit as after the first."""
    lab = make_lab(rtt_ms=20)
    gateway = lab.start_gateway()
    town = Town(lab, gateway, _PEOPLE)
    before = look(lab, gateway)

    def left() -> dict[str, float] | None:
        """Count what there is more than at the start, once nobody is there; None until then.

        What stays for a while is the broker's connection for each user, and ssh's, which a user's sessions share: a
        process and a socket here, two processes of the remote's sshd each there.
        """
        now = look(lab, gateway)
        shared = len(gateway.processes("ssh"))
        kept = {
            "gateway's processes": shared,
            "files in the runtime directory": shared,
            "remote's processes": (_PEOPLE + shared) * 2,
        }
        more = {name: now[name] - before[name] - kept.get(name, 0) for name in COUNTS}
        return None if more["gateway's processes"] or more["remote's processes"] else more

    def visit() -> None:
        town.round(town.people, town.people, _PEOPLE)
        assert not sum(town.failed.values()), town.reasons

    visit()
    first = wait_until(left, "nobody is there")
    visit()
    wait_until(lambda: left() == first, f"there is what there was before: {first}")

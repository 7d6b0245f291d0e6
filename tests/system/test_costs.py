"""What a login costs, in what does not depend on the machine: processes started, packets sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.remote import PORT

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User


def _last_pid(gateway: Gateway) -> int:
    """Return the process id that was given out last in the gateway's namespace: to whoever reads it (proc(5))."""
    return int(gateway.room.run(["cat", "/proc/sys/kernel/ns_last_pid"]).stdout)


def test_processes_and_packets_of_a_warm_login(
    lab: Lab, start_gateway: Callable[..., Gateway], open_terminal: Callable[..., Terminal], user: User
) -> None:
    """A login of somebody known starts six processes, and takes a dozen packets of TCP each way at the most."""
    gateway = start_gateway()
    counts = []
    for _ in range(4):
        pid, before = _last_pid(gateway), lab.wan.traffic()
        terminal = open_terminal(lab.gateway_argv(gateway, user))
        terminal.wait_for(user.prompt)
        after = lab.wan.traffic()
        # One is the reader's own. The rest: sshd for the connection and its unprivileged half, two key commands, sshd
        # as the user, the session.
        processes = _last_pid(gateway) - pid - 1
        up, down = (
            now.packets("tcp", PORT) - then.packets("tcp", PORT)
            for now, then in ((after.up, before.up), (after.down, before.down))
        )
        counts.append((processes, up, down))
        terminal.close()
    # The first one is cold; and the broker starts a thread more while all it has are busy.
    assert min(processes for processes, _, _ in counts[1:]) <= 6 + 1
    assert min(up for _, up, _ in counts[1:]) <= 12
    assert min(down for _, _, down in counts[1:]) <= 12
    assert counts[0][1] <= 30
    assert counts[0][2] <= 30

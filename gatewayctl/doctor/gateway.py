"""The steps on the gateway itself: its congestion control, and a login through it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gatewayctl.doctor.report import SkippedError
from helpers.protocol.errors import GatewayError, PermissionDeniedError, RemoteLostError, RemoteTimeoutError

LOGIN_TIMEOUT_S = 60.0
"""Longest time, in seconds, for a login through the gateway."""

_PROC = Path("/proc/sys/net/ipv4")
_MSS_BYTES, _LOSS, _MATHIS = 1448, 0.01, 1.22
_OURS = range(64, 79)  # sysexits.h


def report_congestion_control(round_trip_s: float, proc: Path = _PROC) -> str:
    """Say which congestion control uploads use, and what it makes of a lossy WAN.

    The estimate is that of Mathis et al., "The Macroscopic Behavior of the TCP Congestion Avoidance Algorithm" (1997).

    Args:
        round_trip_s: The round trip, in seconds.
        proc: The directory of the kernel's settings.
    """
    try:
        name = (proc / "tcp_congestion_control").read_text("ascii").strip()
    except OSError as exc:
        raise SkippedError(f"the kernel does not tell ({exc.strerror})") from exc
    if name.startswith("bbr"):
        return f"{name}, which does not slow down for lost packets"
    limit = _MSS_BYTES * 8 * _MATHIS / (max(round_trip_s, 0.001) * _LOSS**0.5) / 1e6
    remedy = "modprobe tcp_bbr && sysctl -w net.ipv4.tcp_congestion_control=bbr lifts that"
    return f"{name}: at 1 % loss an upload gets {limit:.1f} Mbit/s at most; {remedy}"


class Login:
    """A login through the running gateway.

    Args:
        status: Asks the running gateway for its status; raises `GatewayError` if none runs.
        host_key: GATEWAY_HOST_KEY_PATH.
        user: The user name; None if none was given.
        identity: The private key to log in with; None if none was given.
    """

    def __init__(
        self, status: Callable[[], dict[str, Any]], host_key: Path, user: str | None, identity: Path | None
    ) -> None:
        self._status, self._host_key, self._user, self._identity = status, host_key, user, identity

    def run(self) -> str:
        """Log in, and run true(1) on the remote host."""
        if self._user is None or self._identity is None:
            raise SkippedError("give --user NAME and --identity KEY, a private key of the user's")
        try:
            status = self._status()
        except GatewayError as exc:
            raise SkippedError(exc.message) from exc
        everywhere = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
        host, port = everywhere.get(status["listen_address"], status["listen_address"]), status["listen_port"]
        argv = ["ssh-keygen", "-y", "-P", "", "-f", str(self._host_key)]
        public = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if public.returncode != 0:
            raise PermissionDeniedError(f"GATEWAY_HOST_KEY_PATH {self._host_key} cannot be read; run doctor as root")
        with tempfile.NamedTemporaryFile("w", prefix="gateway-doctor-") as known_hosts:
            known_hosts.write(f"gateway {' '.join(public.stdout.split()[:2])}\n")
            known_hosts.flush()
            return self._ssh(host, port, known_hosts.name)

    def _ssh(self, host: str, port: int, known_hosts: str) -> str:
        options = (
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "HostKeyAlias=gateway",
            f"UserKnownHostsFile={known_hosts}",
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
        )
        words = [word for option in options for word in ("-o", option)]
        argv = ["ssh", "-F", "none", *words, "-i", str(self._identity), "-p", str(port), f"{self._user}@{host}", "true"]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LOGIN_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            msg = f"the login through the gateway took more than {LOGIN_TIMEOUT_S:.0f} s"
            raise RemoteTimeoutError(f"{msg}; its log says where it waits") from exc
        if done.returncode == 0:
            return f"{self._user}@{host} port {port}"
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1].removeprefix("gateway: ")
        refused = "Permission denied" in said
        kind = PermissionDeniedError if refused or done.returncode in _OURS else RemoteLostError
        error = kind(f"{said}; the gateway's log has the reason")
        if done.returncode in _OURS:
            error.status = done.returncode
        raise error

"""What the service manager is told, and that nothing depends on one."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from gatewayctl.supervisor import sd_notify

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool) -> None:
    """READY, RELOADING with the time, STOPPING, to a socket in the file system or an abstract one."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{path}" if abstract else path)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}" if abstract else path)
        sd_notify.ready()
        sd_notify.ready("WARNING: mind the gap")
        sd_notify.reloading()
        sd_notify.stopping()
        sd_notify.stopping(3610)
        assert sock.recv(100) == b"READY=1\nSTATUS="
        assert sock.recv(100) == b"READY=1\nSTATUS=WARNING: mind the gap"
        assert sock.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert sock.recv(100) == b"STOPPING=1"
        assert sock.recv(100) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=3610000000"


@pytest.mark.parametrize("address", [None, "", "nowhere", "/no/such/socket", "@no-such-socket"])
def test_nobody_who_listens_is_no_failure(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """Without a service manager, or with one that is gone, nothing happens."""
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    sd_notify.ready()

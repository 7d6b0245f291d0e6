"""What a reload survives; the rest of the supervisor is tested with real parts (tests/system/test_serve.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gatewayctl.supervisor.supervisor import Supervisor
from helpers.protocol.errors import GatewayError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (GatewayError("REMOTE_PORT must be a port"), "REMOTE_PORT must be a port"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("hunter2"), "the gateway failed: ValueError at "),
        (MemoryError(), "the gateway failed: MemoryError at "),
    ],
)
def test_a_reload_that_fails_is_told(error: Exception, said: str) -> None:
    """Whatever is wrong, a fault of ours too, it is told without a secret, and not the end of all sessions."""
    lines: list[tuple[str, dict[str, Any]]] = []

    def replan() -> None:
        raise error

    supervisor: Any = Supervisor.__new__(Supervisor)
    supervisor._log = SimpleNamespace(error=lambda event, **fields: lines.append((event, fields)))
    supervisor._replan = replan
    supervisor._reload()

    ((event, fields),) = lines
    assert event == "reload_failed"
    assert said in fields["reason"]
    assert "hunter2" not in fields["reason"]

"""Replaces the session helper with another program."""

from __future__ import annotations

import os

from helpers.protocol.errors import GatewayError

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from collections.abc import Mapping


def become(argv: list[str], environ: Mapping[str, str]) -> None:
    """Replace this process with another program, which is searched for in the new PATH.

    Raises:
        GatewayError: The program cannot be started.
    """
    try:
        os.execvpe(argv[0], argv, environ)  # noqa: S606
    except OSError as exc:
        msg = f"{argv[0]} cannot be started on the gateway ({exc.strerror}); tell the gateway's operator"
        raise GatewayError(msg) from exc

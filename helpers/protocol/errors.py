"""The gateway's errors, each with a stable code and an exit status.

The helpers that sshd starts import this module, so it is small and uses the standard library only.
Statuses are those of ``sysexits.h``, one per cause, so that scripts can distinguish them.
"""

from __future__ import annotations

from errno import EAGAIN, EDQUOT, EMFILE, ENFILE, ENOMEM, ENOSPC

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as in shells."""


class GatewayError(Exception):
    """The root of the gateway's own errors.

    Args:
        message: One sentence that may be shown to the user: no secret, no traceback, no newline.

    Attributes:
        code: A stable word for logs, ``--json`` and the broker's protocol.
        status: The exit status of a program that ends because of it (``sysexits.h``, 64-78).
    """

    code = "internal"
    status = 70  # EX_SOFTWARE

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ProtocolError(GatewayError):
    """A peer violated the protocol."""

    code = "protocol"
    status = 65  # EX_DATAERR


class UserNameError(GatewayError):
    """The gateway does not accept the user name."""

    code = "user_name"
    status = 67  # EX_NOUSER


class RemoteUnresolvedError(GatewayError):
    """REMOTE_HOST has no address."""

    code = "remote_unresolved"
    status = 68  # EX_NOHOST


class RemoteRefusedError(GatewayError):
    """The remote refuses the connection."""

    code = "remote_refused"
    status = 69  # EX_UNAVAILABLE


class BrokerUnavailableError(GatewayError):
    """The broker does not answer on its socket."""

    code = "broker_unavailable"
    status = 71  # EX_OSERR


class ListenError(GatewayError):
    """sshd cannot listen on the gateway's address and port."""

    code = "cannot_listen"
    status = 71  # EX_OSERR


class ResourcesError(GatewayError):
    """The gateway itself lacks processes, memory, file descriptors or space in its runtime directory."""

    code = "no_resources"
    status = 71  # EX_OSERR, in sysexits.h for "cannot fork"; shared with BrokerUnavailableError


class NoMoshServerError(GatewayError):
    """The remote has no ``mosh-server`` at REMOTE_MOSH_SERVER."""

    code = "no_mosh_server"
    status = 72  # EX_OSFILE


class MoshServerError(GatewayError):
    """``mosh-server`` ran on the remote and started no session."""

    code = "mosh_server"
    status = 73  # EX_CANTCREAT


class RemoteLostError(GatewayError):
    """The connection to the remote broke, or cannot be made because of the network."""

    code = "remote_lost"
    status = 74  # EX_IOERR


class RemoteTimeoutError(GatewayError):
    """The remote did not answer in time."""

    code = "remote_timeout"
    status = 75  # EX_TEMPFAIL


class DrainingError(GatewayError):
    """The operator has the gateway accept no new sessions (``gatewayctl drain``)."""

    code = "draining"
    status = 75  # EX_TEMPFAIL, as for a remote that does not answer in time: try again later


class NoCommonAlgorithmError(GatewayError):
    """The remote and the gateway have no algorithm of one kind in common."""

    code = "no_common_algorithm"
    status = 64  # EX_USAGE; EX_PROTOCOL is `HostKeyError`'s


class HostKeyError(GatewayError):
    """The remote's host key is unknown, changed or revoked."""

    code = "host_key"
    status = 76  # EX_PROTOCOL


class PermissionDeniedError(GatewayError):
    """The remote, or the gateway, denies permission."""

    code = "permission_denied"
    status = 77  # EX_NOPERM


class NoLocaleError(GatewayError):
    """The remote has no UTF-8 locale, which mosh needs."""

    code = "no_locale"
    status = 66  # EX_NOINPUT


class SettingsError(GatewayError):
    """A setting is missing or wrong; the sentence names the setting, its source and a correct value."""

    code = "settings"
    status = 78  # EX_CONFIG


def local_error(error: Exception) -> GatewayError:
    """Describe an error of the gateway's own system in a sentence.

    Args:
        error: An OSError or MemoryError, or the RuntimeError of Python if no thread can be started.
    """
    number = getattr(error, "errno", None)
    if isinstance(error, FileNotFoundError):
        return ResourcesError("the session's home directory on the gateway is gone; log in again")
    if number in {ENOSPC, EDQUOT}:
        return ResourcesError("the gateway's runtime directory is full; log in again, or tell the gateway's operator")
    why = getattr(error, "strerror", None) or str(error) or "out of memory"
    if isinstance(error, MemoryError | RuntimeError) or number in {EAGAIN, ENOMEM, EMFILE, ENFILE}:
        msg = f"the gateway lacks processes, memory or file descriptors ({why}); try again in a moment"
        return ResourcesError(f"{msg}, or tell the gateway's operator")
    return GatewayError(f"the gateway failed ({why}); tell its operator")

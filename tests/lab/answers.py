"""What a remote answers to the gateway's commands, for tests that have none."""

from __future__ import annotations

MARKER = b"0123456789abcdef0123456789abcdef"
"""The marker of every command, where a test decides."""

_LISTED = b"-rw------- 1 1000 1000 %d Jan  1 00:00 /home/alice/.ssh/authorized_keys\n"
_ABOVE = b"drwx------ 2 1000 1000 60 Jan  1 00:00 /home/alice/.ssh\ndrwxr-xr-x 5 1000 0 4096 Jan  1 00:00 /home/alice\n"


def authorized_keys(*files: bytes | None, marker: bytes = MARKER) -> bytes:
    """Write what the command of `helpers.broker.keys.remote_authorized_keys` answers.

    Args:
        files: The content of each file, None where there is none; two, where the sources are sshd's own default.
        marker: The command's marker.
    """
    answer = b"\n%s uid 1000\n" % marker
    for content in files:
        if content is None:
            answer += b"%s absent\n" % marker
        else:
            answer += b"%s file 3\n" % marker + _LISTED % len(content) + _ABOVE
            answer += b"%s content\n" % marker + content + b"\n"
    return answer + b"%s end\n" % marker


def mosh_connect(port: int, key: str, *, marker: bytes = MARKER) -> bytes:
    """Write what mosh-server's command answers."""
    return b"\n%s MOSH CONNECT %d %s\r\n" % (marker, port, key.encode("ascii"))

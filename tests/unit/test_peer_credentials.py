"""Who is at the other end of a unix socket, and which login a helper belongs to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.broker.peer_credentials import Peer, peer_of, session_id


def test_the_kernel_names_the_peer() -> None:
    """The process that connected is known by pid and uid, whatever it says."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_of(ours) == Peer(os.getpid(), os.geteuid())


def test_another_process_is_another_peer(tmp_path: Path) -> None:
    """The pid is that of the process that called connect()."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); s.recv(1)"
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", code]) as process:
            connection, _ = listener.accept()
            with connection:
                assert peer_of(connection).pid == process.pid


def test_what_is_no_unix_socket_has_no_peer() -> None:
    """A socket of another family names no process."""
    with socket.socket(socket.AF_INET) as sock:
        try:
            peer = peer_of(sock)
        except OSError:
            return
    assert peer.pid == 0


def _proc(root: Path, processes: dict[int, tuple[str, int, int]]) -> Path:
    for pid, (name, parent, start) in processes.items():
        (root / str(pid)).mkdir()
        fields = ["S", str(parent), *["0"] * 17, str(start), "0"]
        (root / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
    return root


_TREE = {
    10: ("gatewayctl", 1, 5),
    20: ("sshd", 10, 6),
    30: ("sshd-session", 20, 777),
    40: ("sshd-session", 30, 778),
    50: ("python3 a) S 99 (b", 40, 779),
    60: ("sh", 1, 9),
}


@pytest.mark.parametrize("pid", [30, 40, 50])
def test_all_helpers_of_a_login_share_its_name(pid: int, tmp_path: Path) -> None:
    """Every process below a connection has that connection's pid and start, also one with parentheses in its name."""
    assert session_id(pid, 10, _proc(tmp_path, _TREE)) == "30-777"


@pytest.mark.parametrize("pid", [0, 1, 10, 20, 60, 99])
def test_others_belong_to_no_login(pid: int, tmp_path: Path) -> None:
    """The listener itself, the supervisor, a stranger and a process that is gone have none."""
    assert session_id(pid, 10, _proc(tmp_path, _TREE)) is None


def test_a_circle_of_parents_ends(tmp_path: Path) -> None:
    """Process ids that were reused while they were read may form a circle, which is no login."""
    assert session_id(2, 10, _proc(tmp_path, {2: ("a", 3, 1), 3: ("b", 2, 1)})) is None


def test_the_real_proc() -> None:
    """This process is a child of its parent, as its own login's only process."""
    found = session_id(os.getpid(), os.getppid())
    assert found is None
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert (session_id(child.pid, os.getppid()) or "").startswith(f"{child.pid}-")
        child.communicate()

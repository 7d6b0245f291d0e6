"""sshd's listening sockets, of which we have copies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket

import pytest

from gatewayctl.runtime import processes
from gatewayctl.sshd import listener

_NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connections_take_over_that_nothing_waits(family: socket.AddressFamily, address: str) -> None:
    """Those that come after it, as sshd's do; sockets that are no network's are left alone."""
    pair = socket.socketpair()
    with socket.create_server((address, 0), family=family) as server, pair[0], pair[1]:

        def takes_over() -> bool:
            with socket.create_connection(server.getsockname()[:2]) as client, server.accept()[0] as accepted:
                assert client.getsockopt(*_NODELAY) == 0
                return accepted.getsockopt(*_NODELAY) != 0

        assert not takes_over()
        listener.set_socket_options(os.getpid())
        assert takes_over()


def test_connections_take_over_that_acknowledgements_are_soon() -> None:
    """Where the kernel can be told so (Linux 6.15); where it cannot, nothing else changes."""

    def wait_us(sock: socket.socket) -> int:
        return sock.getsockopt(socket.IPPROTO_TCP, 46)  # TCP_DELACK_MAX_US

    with socket.create_server(("127.0.0.1", 0)) as server:
        listener.set_socket_options(os.getpid())
        with socket.create_connection(server.getsockname()) as client, server.accept()[0] as accepted:
            assert accepted.getsockopt(*_NODELAY) != 0
            try:
                usual_us = wait_us(client)
            except OSError as error:
                if error.errno != errno.ENOPROTOOPT:
                    raise
            else:
                assert usual_us > 40_000
                # Two ticks are the least, and 100 a second the fewest that a kernel has.
                assert wait_us(accepted) <= 20_000


def test_what_is_no_socket_by_the_time_is_given_back() -> None:
    """A connection that sshd closes while we look, and whose number a pipe then has, costs us no file descriptor."""
    reading, writing = os.pipe()
    copies: dict[int, int] = {}

    def copy_descriptor(pid: int, fd: int) -> int:
        assert pid == os.getpid()
        copies[fd] = fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, 500)
        return copies[fd]

    with socket.create_server(("127.0.0.1", 0)) as server:
        listener.set_socket_options(os.getpid(), copy_descriptor)
        assert server.fileno() in copies
    os.close(writing)
    os.close(reading)
    for copy in copies.values():
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(copy)


def test_a_borrowed_descriptor_is_the_same_file() -> None:
    """What is done to the copy is done to the other's."""
    reading, writing = os.pipe()
    ours = processes.copy_descriptor(os.getpid(), writing)
    assert not os.get_inheritable(ours)
    os.write(ours, b"x")
    assert os.read(reading, 1) == b"x"
    for fd in (reading, writing, ours):
        os.close(fd)


def test_nothing_is_borrowed_from_nobody() -> None:
    """A process that is gone, and a descriptor that is not open, are errors and not another's."""
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    with pytest.raises(OSError, match="No such process"):
        processes.copy_descriptor(child, 0)
    with pytest.raises(OSError, match="pidfd_getfd"):
        processes.copy_descriptor(os.getpid(), 1_000_000)

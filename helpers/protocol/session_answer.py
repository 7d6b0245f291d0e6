"""The broker's answer to a session request, from which the session helper becomes mosh-client or ssh."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class MoshAnswer(TypedDict):
    """A mosh-server that waits on the remote.

    Attributes:
        transport: The session's transport.
        address: The remote's numeric address.
        port: The mosh-server's UDP port.
        key: Its key, MOSH_KEY.
        predict: GATEWAY_MOSH_PREDICT.
        patience_s: If UDP has not been seen to pass, the seconds after which the session goes over ssh.
        server: mosh-server's pid on the remote, then.
        home: The user's home on the gateway.
    """

    transport: Literal["mosh"]
    address: str
    port: int
    key: str
    predict: str
    patience_s: NotRequired[float]
    server: NotRequired[int | None]
    home: NotRequired[str]


class MoshByAgent(TypedDict):
    """Commands by which the session itself starts a mosh-server over ssh, if the gateway has no key.

    Attributes:
        commands: Command lines, to try in turn.
        program: REMOTE_MOSH_SERVER, for messages.
        predict: GATEWAY_MOSH_PREDICT.
        falls_back: Whether the session goes over ssh if the remote lacks what mosh needs.
    """

    commands: list[str]
    program: str
    predict: str
    falls_back: bool


class SshAnswer(TypedDict):
    """The connection for the session's own ssh.

    Attributes:
        transport: The session's transport.
        address: The first of the remote's numeric addresses.
        addresses: All of them, in the order in which to try them.
        host: REMOTE_HOST.
        port: REMOTE_PORT.
        host_key_alias: The name by which the host key is looked up (ssh_config(5), HostKeyAlias).
        known_hosts: The file with the host key; None accepts any host key.
        agent: The broker's agent; None if the user's own is used.
        user: The user's name.
        share: Whether sessions of the user may share a connection.
        interactive: Whether the remote completes logins by keyboard-interactive authentication without a prompt.
        subsystem: The subsystem to request; None for a command or a shell.
        command: The command; None for a shell or a subsystem.
        pty: Whether to request a terminal.
        mosh: The commands that start a mosh-server, if ssh is used only for that.
        notice: A line for the user: why the session does not go over mosh.
        home: The user's home on the gateway.
        options: ssh's options, added by the session helper.
        identity: ssh's IdentityFile, added by the session helper.
    """

    transport: Literal["ssh"]
    address: str
    addresses: list[str]
    host: str
    port: int
    host_key_alias: str
    known_hosts: str | None
    agent: str | None
    user: str
    share: bool
    interactive: bool
    subsystem: str | None
    command: str | None
    pty: bool
    mosh: NotRequired[MoshByAgent]
    notice: NotRequired[str]
    home: NotRequired[str]
    options: NotRequired[list[str]]
    identity: NotRequired[str | None]


SessionAnswer = MoshAnswer | SshAnswer

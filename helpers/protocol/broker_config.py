"""What the supervisor tells the broker at its start.

It goes over standard input, so that the key never touches a disk or an environment on the way.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from helpers.protocol.access_mode import AccessMode

KEY_SETTINGS = "the gateway's key (GATEWAY_SSH_KEY_PATH or GATEWAY_SSH_KEY_CONTENT)"
"""What a sentence about the key begins with, whoever finds fault with it."""


@dataclass(frozen=True)
class BrokerConfig:
    """The broker's part of the settings, in the settings' own terms.

    Attributes:
        remote_host: REMOTE_HOST.
        remote_port: REMOTE_PORT.
        known_hosts: REMOTE_KNOWN_HOSTS; None where any host key will do.
        ssh_key: The gateway's private key, as in its file; None where users bring their agents.
        ssh_certificate: The certificate beside it, if there is one.
        authorized_keys_files: REMOTE_AUTHORIZED_KEYS_FILE, path by path.
        authorized_keys_command: REMOTE_AUTHORIZED_KEYS_COMMAND; "" for none.
        authorized_keys_path: GATEWAY_AUTHORIZED_KEYS_PATH.
        authorized_keys_content: GATEWAY_AUTHORIZED_KEYS_CONTENT.
        accept_any_key: GATEWAY_ACCEPT_ANY_KEY.
        passwords: User name to hashed password (crypt(5)).
        no_passwords: Hashes that no password has, of the kinds and costs of ``passwords``: every other name has one of
            them, so that the time sshd takes to check a password tells no names; "*" where there are no passwords.
        no_passwords_key: A secret that says which name has which of them, the same after a restart.
        cache_ttl_s: GATEWAY_CACHE_TTL, seconds.
        state_dir: A directory that only the broker may enter.
        homes_dir: Where the supervisor makes users' home directories.
        agent_socket: Where the sessions' ssh reaches the broker's agent.
        uid_start: First uid for users.
        uid_stop: One past the last.
        auth_uid: The uid that AuthorizedKeysCommand runs as.
        permit_root: GATEWAY_PERMIT_ROOT.
        mosh_server: REMOTE_MOSH_SERVER.
        mosh_ports: REMOTE_MOSH_PORTS.
        pty_commands: GATEWAY_PTY_COMMANDS.
        mosh_predict: GATEWAY_MOSH_PREDICT.
        session_timeout_s: GATEWAY_SESSION_TIMEOUT, seconds.
        trusted_proxies: GATEWAY_TRUSTED_PROXIES, networks with commas between; "" for none.
        log_level: GATEWAY_LOG_LEVEL.
        syslog: Whether to log to syslog.
        listen_address: Where sshd listens, for whoever asks for the status.
        listen_port: GATEWAY_PORT, for the same.
    """

    remote_host: str
    remote_port: int
    known_hosts: str | None
    ssh_key: str | None = field(repr=False)
    ssh_certificate: str | None
    authorized_keys_files: list[str]
    authorized_keys_command: str
    authorized_keys_path: str | None
    authorized_keys_content: str | None
    accept_any_key: bool
    passwords: dict[str, str] = field(repr=False)
    no_passwords: list[str] = field(repr=False)
    no_passwords_key: str = field(repr=False)
    cache_ttl_s: float
    state_dir: str
    homes_dir: str
    agent_socket: str
    uid_start: int
    uid_stop: int
    auth_uid: int
    permit_root: bool
    mosh_server: str
    mosh_ports: str
    pty_commands: str
    mosh_predict: str
    session_timeout_s: int
    trusted_proxies: str
    log_level: str
    syslog: bool
    listen_address: str
    listen_port: int

    @property
    def access_mode(self) -> AccessMode:
        """How the gateway decides who may log in."""
        local = self.authorized_keys_path is not None or self.authorized_keys_content is not None
        return AccessMode.of(
            has_key=self.ssh_key is not None, has_local_keys=local, accepts_any_key=self.accept_any_key
        )

    @property
    def users_path(self) -> Path:
        """The file that holds the names and their uids."""
        return Path(self.state_dir) / "users.sqlite3"

    def to_json(self) -> bytes:
        """Write it for `from_json`."""
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def from_json(cls, text: bytes) -> BrokerConfig:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

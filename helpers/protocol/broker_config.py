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

    Fields that are named like a setting (in lower case) have the setting's value; see `gatewayctl.settings.model`.

    Attributes:
        known_hosts: REMOTE_KNOWN_HOSTS; None where any host key will do.
        ssh_key: The gateway's private key, as in its file; None where users bring their agents.
        ssh_certificate: The certificate beside it, if there is one.
        authorized_keys_files: REMOTE_AUTHORIZED_KEYS_FILE, path by path.
        passwords: User name to hashed password (crypt(5)).
        no_passwords: Placeholder hashes, of the kinds and costs of ``passwords``. Every other name has one of them, so
            that rejecting an unknown name costs sshd what rejecting a known one costs; "*" without passwords.
        no_passwords_key: A secret that says which name has which of them, the same after a restart.
        state_dir: A directory that only the broker may enter.
        homes_dir: Where the supervisor makes users' home directories.
        agent_socket: Where the sessions' ssh reaches the broker's agent.
        uid_start: First uid for users.
        uid_stop: One past the last.
        auth_uid: The uid that AuthorizedKeysCommand runs as.
        syslog: Whether to log to syslog.
    """

    remote_host: str
    remote_port: int
    known_hosts: str | None
    ssh_key: str | None = field(repr=False)
    ssh_certificate: str | None
    authorized_keys_files: list[str]
    remote_authorized_keys_command: str
    gateway_authorized_keys_path: str | None
    gateway_authorized_keys_content: str | None
    gateway_accept_any_key: bool
    passwords: dict[str, str] = field(repr=False)
    no_passwords: list[str] = field(repr=False)
    no_passwords_key: str = field(repr=False)
    gateway_cache_ttl: float
    state_dir: str
    homes_dir: str
    agent_socket: str
    uid_start: int
    uid_stop: int
    auth_uid: int
    gateway_permit_root: bool
    remote_mosh_server: str
    remote_mosh_ports: str
    gateway_pty_commands: str
    gateway_mosh_predict: str
    gateway_session_timeout: int
    gateway_trusted_proxies: str
    gateway_log_level: str
    syslog: bool
    gateway_host: str
    gateway_port: int

    @property
    def access_mode(self) -> AccessMode:
        """How the gateway decides who may log in."""
        local = self.gateway_authorized_keys_path is not None or self.gateway_authorized_keys_content is not None
        return AccessMode.of(
            has_key=self.ssh_key is not None, has_local_keys=local, accepts_any_key=self.gateway_accept_any_key
        )

    @property
    def users_path(self) -> Path:
        """The file that holds the names and their uids."""
        return Path(self.state_dir) / "users.sqlite3"

    @property
    def sessions_path(self) -> Path:
        """The file that holds the open sessions."""
        return Path(self.state_dir) / "sessions.sqlite3"

    @property
    def locks_path(self) -> Path:
        """The file that holds the names that the operator has locked."""
        return Path(self.state_dir) / "locks.sqlite3"

    def to_json(self) -> bytes:
        """Write it for `from_json`."""
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def from_json(cls, text: bytes) -> BrokerConfig:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

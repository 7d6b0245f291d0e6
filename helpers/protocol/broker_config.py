"""The settings that the supervisor passes to the broker at its start.

They are sent over standard input, so that the key never touches a disk or an environment on the way.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from helpers.protocol.access_mode import AccessMode

KEY_SETTINGS = "the gateway's key (GATEWAY_SSH_KEY_PATH or GATEWAY_SSH_KEY_CONTENT)"
"""The first words of all errors about the key."""


@dataclass(frozen=True)
class BrokerConfig:
    """The broker's part of the settings.

    Fields that are named like a setting (in lower case) have the setting's value; see `gatewayctl.settings.model`.

    Attributes:
        known_hosts: REMOTE_KNOWN_HOSTS; None accepts any host key.
        ssh_key: The content of the gateway's private key file; None with agent pass-through.
        ssh_certificate: The content of its certificate's file; None if there is none.
        authorized_keys_files: The paths in REMOTE_AUTHORIZED_KEYS_FILE.
        passwords: User name to hashed password (crypt(5)).
        placeholder_hashes: Hashes of the kinds and costs of ``passwords``. Every other name has one of them, so that
            rejecting an unknown name costs sshd the same as rejecting a known one; "*" without passwords.
        placeholder_key: A secret that selects the placeholder of each name, the same after a restart.
        state_dir: A directory that only the broker can enter.
        homes_dir: The directory in which the supervisor makes users' home directories.
        agent_socket: The path of the broker's agent socket, for the sessions' ssh.
        uid_start: First uid for users.
        uid_stop: One past the last uid for users.
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
    placeholder_hashes: list[str] = field(repr=False)
    placeholder_key: str = field(repr=False)
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
    gateway_transport: str
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
        """The way in which users authenticate."""
        local = self.gateway_authorized_keys_path is not None or self.gateway_authorized_keys_content is not None
        return AccessMode.of(
            has_key=self.ssh_key is not None, has_local_keys=local, accepts_any_key=self.gateway_accept_any_key
        )

    @property
    def users_path(self) -> Path:
        """The file of the table of names and uids."""
        return Path(self.state_dir) / "users.sqlite3"

    @property
    def sessions_path(self) -> Path:
        """The file of the table of open sessions."""
        return Path(self.state_dir) / "sessions.sqlite3"

    @property
    def locks_path(self) -> Path:
        """The file of the table of locked names."""
        return Path(self.state_dir) / "locks.sqlite3"

    def to_json(self) -> bytes:
        """Serialize the settings for `from_json`."""
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def from_json(cls, text: bytes) -> BrokerConfig:
        """Parse the output of `to_json`."""
        return cls(**json.loads(text))

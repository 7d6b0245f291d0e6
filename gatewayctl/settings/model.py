"""All settings of the gateway. Flags, documentation and errors are made from these definitions.

A flag takes precedence over an environment variable, that over the YAML file, and that over the default.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
)

from gatewayctl.settings import cross_checks, key_files, sources, validators
from gatewayctl.settings.metadata import Doc, describe, setting_error

if TYPE_CHECKING:
    from collections.abc import Mapping


def _checked_key_content(content: SecretStr) -> SecretStr:
    validators.key_content(content.get_secret_value())
    return content


def _checked_uid_range(text: str) -> str:
    validators.uid_range(text)
    return text


def _checked_authorized_keys_files(text: str) -> str:
    validators.authorized_keys_files(text)
    return text


_UID_MAP = Path("/proc/self/uid_map")
_BOOLEAN = "true or false"
_FILE = "the absolute path of a file"
_Port = Annotated[int, Field(ge=1, le=65535), BeforeValidator(validators.port)]
_AbsolutePath = Annotated[Path, BeforeValidator(validators.absolute_path)]
_KeyContent = Annotated[SecretStr, AfterValidator(_checked_key_content)]


class Settings(BaseModel):
    """The settings of one gateway. Made by `load_settings`; frozen; secrets are masked in its ``repr``."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False)

    remote_host: Annotated[
        str,
        AfterValidator(validators.remote_host),
        Doc(
            "The remote host, on which users land",
            "a host name, an IPv4 or an IPv6 address",
            "shell.example.org",
            "HOST",
        ),
    ]
    remote_port: Annotated[
        _Port, Doc("The TCP port of sshd on the remote host", "a port from 1 to 65535", "2200", "PORT")
    ] = 22
    remote_known_hosts: Annotated[
        _AbsolutePath,
        Doc(
            "The file that holds the remote host's host key, as ssh's UserKnownHostsFile does",
            _FILE,
            "/etc/gateway/known_hosts",
            "FILE",
        ),
    ] = Path("/etc/ssh/ssh_known_hosts")
    remote_ignore_host_key: Annotated[
        bool,
        Doc(
            "Do not check the remote host's host key; an attacker in between can then read and change every session",
            _BOOLEAN,
            "true",
            "BOOLEAN",
        ),
    ] = False
    remote_mosh_server: Annotated[
        str,
        AfterValidator(validators.command),
        Doc(
            "The mosh-server to start on the remote host",
            "a command name or the absolute path of a command",
            "/usr/local/bin/mosh-server",
            "COMMAND",
        ),
    ] = "mosh-server"
    remote_mosh_ports: Annotated[
        str,
        AfterValidator(validators.port_range),
        Doc(
            "The UDP ports on the remote host that mosh-server may use",
            "PORT or FIRST:LAST, ascending, from 1 to 65535",
            "60001:60100",
            "PORTS",
        ),
    ] = "60001:60999"
    remote_authorized_keys_file: Annotated[
        str,
        AfterValidator(_checked_authorized_keys_files),
        Doc(
            "The remote host's files with a user's keys, as sshd's AuthorizedKeysFile names them; none for no file",
            "paths with blanks between, absolute or below the home; %u is the user, %h the home, %% a percent sign",
            "/etc/ssh/authorized_keys/%u .ssh/authorized_keys",
            "PATHS",
        ),
    ] = ".ssh/authorized_keys .ssh/authorized_keys2"
    remote_authorized_keys_command: Annotated[
        str,
        AfterValidator(validators.authorized_keys_command),
        Doc(
            "A command on the remote host that prints more of a user's keys, as sshd's AuthorizedKeysCommand does;"
            " it runs as the user, after the files are read",
            "an absolute path and its arguments; %u is the user, %h the home, %% a percent sign",
            "/usr/bin/sss_ssh_authorizedkeys %u",
            "COMMAND",
        ),
    ] = ""
    gateway_ssh_key_path: Annotated[
        _AbsolutePath | None,
        Doc(
            "The gateway's private key, with which it logs in on the remote host",
            _FILE,
            "/etc/gateway/id_ed25519",
            "FILE",
        ),
    ] = None
    gateway_ssh_key_content: Annotated[
        _KeyContent | None,
        Doc(
            "The gateway's private key as text: the key file in base64",
            "the output of base64 -w0 FILE for a private key file",
            "LS0tLS1CRUdJTiBPUEVOU1NIIFBSSVZBVEUgS0VZLS0tLS0K",
            "BASE64",
        ),
    ] = None
    gateway_authorized_keys_path: Annotated[
        _AbsolutePath | None,
        Doc(
            "A local authorized_keys file that decides for every user, instead of the remote host's",
            _FILE,
            "/etc/gateway/authorized_keys",
            "FILE",
        ),
    ] = None
    gateway_authorized_keys_content: Annotated[
        str | None,
        Doc(
            "The local authorized_keys as text, one key a line",
            "authorized_keys lines",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGi1xVOgDIyMUtRJwV1zP7RBT2D1v1h0HbSkcp1yTXNv alice",
            "LINES",
        ),
    ] = None
    gateway_keys_dir: Annotated[
        _AbsolutePath | None,
        Doc(
            "A directory whose files id_ed25519, authorized_keys and known_hosts, if they exist, stand for"
            " GATEWAY_SSH_KEY_PATH, GATEWAY_AUTHORIZED_KEYS_PATH and REMOTE_KNOWN_HOSTS",
            "the absolute path of a directory",
            "/etc/gateway/keys",
            "DIRECTORY",
        ),
    ] = None
    gateway_password_auth: Annotated[bool, Doc("Permit login by password", _BOOLEAN, "true", "BOOLEAN")] = False
    gateway_passwords: Annotated[
        SecretStr | None,
        Doc(
            "The users who may log in by password, and their passwords",
            "NAME:PASSWORD pairs, one a line or with commas between",
            "alice:s3cr3t,bob:pass",
            "PAIRS",
        ),
    ] = None
    gateway_accept_any_key: Annotated[
        bool, Doc("Permit login with any key, as any user", _BOOLEAN, "true", "BOOLEAN")
    ] = False
    gateway_permit_root: Annotated[
        bool, Doc("Permit login as root, like any other name", _BOOLEAN, "true", "BOOLEAN")
    ] = False
    gateway_host: Annotated[
        str,
        AfterValidator(validators.listen_host),
        Doc("The address to listen on", "a host name, an IPv4 or an IPv6 address, or * for all", "*", "ADDRESS"),
    ] = "0.0.0.0"  # noqa: S104 - a gateway must be reachable
    gateway_port: Annotated[_Port, Doc("The TCP port to listen on", "a port from 1 to 65535", "22", "PORT")] = 2222
    gateway_host_key_path: Annotated[
        _AbsolutePath,
        Doc(
            "The gateway's own host key; made if missing, never overwritten",
            _FILE,
            "/srv/gateway/host_key",
            "FILE",
        ),
    ] = Path("/etc/gateway/host_key")
    gateway_cache_ttl: Annotated[
        int,
        Field(ge=1, le=86400),
        Doc(
            "How long a user's keys, or the remote host's refusal, are cached;"
            " a key revoked on the remote host works here for at most this long",
            "seconds from 1 to 86400",
            "10",
            "SECONDS",
        ),
    ] = 60
    gateway_session_timeout: Annotated[
        int,
        Field(ge=60, le=31_536_000),
        Doc(
            "How long mosh-server waits for a silent gateway before it ends the session",
            "seconds from 60 to 31536000",
            "604800",
            "SECONDS",
        ),
    ] = 86400
    gateway_stop_timeout: Annotated[
        int,
        Field(ge=0, le=604_800),
        Doc(
            "How long open sessions may go on after SIGTERM, while the port is closed; a second SIGTERM ends them",
            "seconds from 0 to 604800",
            "3600",
            "SECONDS",
        ),
    ] = 0
    gateway_mosh_predict: Annotated[
        Literal["adaptive", "always", "never", "experimental"],
        Doc(
            "When mosh shows typed characters before the remote host has answered",
            "adaptive, always, never or experimental",
            "always",
            "WHEN",
        ),
    ] = "adaptive"
    gateway_runtime_dir: Annotated[
        Path,
        BeforeValidator(validators.runtime_directory),
        Doc(
            "The directory for sockets and generated files; two gateways on one machine need two",
            "an absolute path of plain characters, at most 64 long",
            "/run/gateway-2",
            "DIRECTORY",
        ),
    ] = Path("/run/gateway")
    gateway_uid_range: Annotated[
        str,
        AfterValidator(_checked_uid_range),
        Doc(
            "The uids that users get on the gateway while they are logged in",
            "FIRST:LAST, both inclusive, at least 1024 uids from 1000 to 2147483647 without 65534 and 65535",
            "2000000000:2000065535",
            "UIDS",
            default="a block of 65536 uids derived from the runtime directory",
        ),
    ] = ""
    gateway_transport: Annotated[
        Literal["auto", "mosh", "ssh"],
        Doc(
            "The transport of terminals: auto is mosh, and ssh where mosh does not work; mosh fails there",
            "auto, mosh or ssh",
            "mosh",
            "TRANSPORT",
        ),
    ] = "auto"
    gateway_pty_commands: Annotated[
        Literal["mosh", "ssh"],
        Doc(
            "The transport of ssh -t HOST COMMAND: mosh survives a bad WAN, ssh returns the command's exit status",
            "mosh or ssh",
            "ssh",
            "TRANSPORT",
        ),
    ] = "mosh"
    gateway_trusted_proxies: Annotated[
        str,
        AfterValidator(validators.networks),
        Doc(
            "Load balancers and NATs whose clients share one address, and must not be penalized together",
            "addresses or networks in CIDR form with commas between",
            "192.0.2.0/24,2001:db8::/64",
            "NETWORKS",
        ),
    ] = ""
    gateway_log: Annotated[
        Literal["stderr", "syslog"],
        Doc(
            "Where sshd, the broker and the gateway itself log; syslog uses facility auth",
            "stderr or syslog",
            "syslog",
            "STREAM",
        ),
    ] = "stderr"
    gateway_log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(str.lower),
        Doc("The lowest level that is logged", "debug, info, warning or error", "debug", "LEVEL"),
    ] = "info"

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _warnings: list[str] = PrivateAttr(default_factory=list)

    @property
    def uid_range(self) -> tuple[int, int]:
        """The first and the last uid for users, both inclusive."""
        if self.gateway_uid_range:
            return validators.uid_range(self.gateway_uid_range)
        derived = validators.derived_uid_range(self.gateway_runtime_dir)
        return validators.mapped_uid_range(derived, _UID_MAP.read_text(encoding="ascii"))

    @property
    def key_content(self) -> bytes | None:
        """The decoded GATEWAY_SSH_KEY_CONTENT: the bytes of a private key file; None if it is not set."""
        secret = self.gateway_ssh_key_content
        return None if secret is None else validators.key_content(secret.get_secret_value())

    @property
    def fixed(self) -> list[str]:
        """The settings that a reload cannot change: GATEWAY_RUNTIME_DIR, GATEWAY_UID_RANGE and GATEWAY_LOG."""
        return [str(self.gateway_runtime_dir), "{}:{}".format(*self.uid_range), self.gateway_log]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings, one sentence each, for the log at the start."""
        return tuple(self._warnings)

    def remember(self, origins: Mapping[str, str]) -> None:
        """Store the source of each value: setting name to origin."""
        self._origins.update(origins)

    def warn(self, *sentences: str) -> None:
        """Add to the warnings."""
        self._warnings.extend(sentences)

    def origin(self, name: str) -> str:
        """Return the source of a setting's value: ``environment REMOTE_PORT``, ``default``."""
        return self._origins.get(name, "default")


def _check_files(given: Mapping[str, sources.SettingValue]) -> None:
    """Check files with settings like key files: they, too, determine which users can log in.

    Raises:
        KeyFileError: Other users can change one, or read one with a secret.
    """
    secret = {info.name for info in describe(Settings) if info.secret}
    origins = {value.file: value.origin for value in given.values() if value.file is not None}
    for file, origin in origins.items():
        held = {name for name, value in given.items() if value.file == file}
        # A pipe has no owner to check.
        if not sources.is_inherited_descriptor(file):
            _, comma, variable = origin.partition(f"{file}, ")
            key_files.check(file, variable if comma else "the settings", private=bool(held & secret))


def load_settings(config: Path | None, flags: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Merge the sources and validate the result.

    Args:
        config: A YAML file, None for none.
        flags: Setting name in lower case to value; None means that the flag was not given.
        environ: The process's environment.

    Raises:
        SettingsError: A setting is missing or wrong; the sentence names it, its source and the valid values.
    """
    names = Settings.model_fields.keys()
    # Each source separately: a value that another source overrides is in its file nevertheless.
    given: dict[str, sources.SettingValue] = {}
    for source in (sources.from_yaml(config, names) if config else {}, sources.from_environment(environ, names)):
        _check_files(source)
        given |= source
    given |= sources.from_flags(flags)
    sources.check_text(given)
    if "gateway_keys_dir" in given:
        given |= key_files.in_directory(Path(given["gateway_keys_dir"].text), given)
    try:
        settings = Settings.model_validate({name: value.text for name, value in given.items()})
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        raise setting_error(error, Settings, given) from None  # a chained traceback could show the values
    settings.remember({name: value.origin for name, value in given.items()})
    cross_checks.check(settings)
    settings.warn(*sources.unknown_variables(environ, names), *cross_checks.warnings(settings))
    return settings

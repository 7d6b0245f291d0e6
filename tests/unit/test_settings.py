"""The settings: which source wins, what is let through, and the one line that a wrong value costs."""

from __future__ import annotations

import base64
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayctl.settings import validators
from gatewayctl.settings.key_files import KeyFileError
from gatewayctl.settings.metadata import describe
from gatewayctl.settings.model import Settings, load_settings
from helpers.protocol.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n"
KEY_CONTENT = base64.b64encode(KEY.encode()).decode()
ENOUGH = {"REMOTE_HOST": "shell.example.org", "GATEWAY_SSH_KEY_CONTENT": KEY_CONTENT}


def load(environ: Mapping[str, str] | None = None, **flags: object) -> Settings:
    """Load settings from variables, on top of what is required, and flags."""
    return load_settings(None, flags, {**ENOUGH, **(environ or {})})


def refusal(environ: Mapping[str, str], **flags: object) -> str:
    """Load settings that must be refused, and return the line."""
    with pytest.raises(SettingsError) as caught:
        load(environ, **flags)
    assert "\n" not in caught.value.message
    return caught.value.message


def yaml(tmp_path: Path, text: str) -> Path:
    """Write a YAML file."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_defaults() -> None:
    """With what is required alone, everything else is as documented."""
    settings = load()
    assert settings.remote_port == 22
    assert settings.gateway_host == "0.0.0.0"  # noqa: S104 - compared, not bound
    assert settings.gateway_port == 2222
    assert settings.gateway_host_key_path == Path("/etc/gateway/host_key")
    assert settings.remote_known_hosts == Path("/etc/ssh/ssh_known_hosts")
    assert settings.gateway_cache_ttl == 60
    assert settings.gateway_session_timeout == 86400
    assert settings.remote_mosh_ports == "60001:60999"
    assert not settings.remote_ignore_host_key
    assert not settings.gateway_permit_root
    assert settings.origin("remote_port") == "default"
    assert settings.key_content == KEY.encode()


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """Each source wins over the next, and the origin says which it was."""
    config = yaml(tmp_path, "remote_port: 1\ngateway_port: 1\ngateway_cache_ttl: 1\n")
    environ = {**ENOUGH, "REMOTE_PORT": "2", "GATEWAY_PORT": "2"}
    settings = load_settings(config, {"remote_port": "3", "gateway_port": None}, environ)
    assert (settings.remote_port, settings.gateway_port, settings.gateway_cache_ttl) == (3, 2, 1)
    assert settings.origin("remote_port") == "--remote-port"
    assert settings.origin("gateway_port") == "environment GATEWAY_PORT"
    assert settings.origin("gateway_cache_ttl") == f"{config} line 3: gateway_cache_ttl"


def test_an_empty_variable_is_not_set() -> None:
    """Compose files and manifests pass empty variables for what nobody filled in."""
    assert load({"REMOTE_PORT": "", "GATEWAY_PERMIT_ROOT": ""}).remote_port == 22
    assert "REMOTE_HOST is missing" in refusal({"REMOTE_HOST": ""})


def test_a_file_may_hold_a_value(tmp_path: Path) -> None:
    """SETTING_FILE names it, as container engines hand over secrets; a flag still wins, and it is not unknown."""
    file = tmp_path / "port"
    file.write_text("2022\r\n")
    settings = load({"REMOTE_PORT_FILE": str(file), "REMOTE_MOSH_SERVER_FILE": ""})
    assert settings.remote_port == 2022
    assert not [line for line in settings.warnings if "_FILE" in line]
    assert settings.origin("remote_port") == f"{file}, environment REMOTE_PORT_FILE"
    assert load({"REMOTE_PORT_FILE": str(file)}, remote_port="3").remote_port == 3


def test_a_secrets_file(tmp_path: Path) -> None:
    """Passwords come out of it whole, and never show in an error."""
    file = tmp_path / "passwords"
    file.write_text("alice: s3cr3t \n")
    file.chmod(0o600)
    settings = load({"GATEWAY_PASSWORD_AUTH": "true", "GATEWAY_PASSWORDS_FILE": str(file)})
    assert settings.gateway_passwords is not None
    assert settings.gateway_passwords.get_secret_value() == "alice: s3cr3t "
    file.write_text("s3cr3t")
    said = refusal({"GATEWAY_PASSWORD_AUTH": "true", "GATEWAY_PASSWORDS_FILE": str(file)})
    assert "s3cr3t" not in said
    assert "pair 1 is wrong" in said


def test_files_refused(tmp_path: Path) -> None:
    """What is missing, no text, or given twice, in one line with the variable's name."""
    assert (
        refusal({"REMOTE_PORT_FILE": "/no/such"})
        == "REMOTE_PORT_FILE: /no/such cannot be read: No such file or directory"
    )
    assert "cannot be read: Is a directory" in refusal({"REMOTE_PORT_FILE": str(tmp_path)})
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff")
    assert refusal({"REMOTE_PORT_FILE": str(binary)}) == f"REMOTE_PORT_FILE: {binary} is not UTF-8 text"
    twice = refusal({"REMOTE_PORT": "22", "REMOTE_PORT_FILE": str(binary)})
    assert twice == "REMOTE_PORT and REMOTE_PORT_FILE exclude each other: give one"


def test_every_example_is_right(tmp_path: Path) -> None:
    """What the documentation shows as an example is accepted, by itself, and is not the default."""
    for info in describe(Settings):
        if info.name in {"gateway_password_auth", "gateway_passwords", "gateway_ssh_key_content"}:
            continue  # each needs, or excludes, another
        example = info.doc.example
        if info.name in {"gateway_ssh_key_path", "gateway_authorized_keys_path"}:
            example = str(tmp_path / "file")
            Path(example).touch(0o600)
        environ = {"REMOTE_HOST": "h", "GATEWAY_SSH_KEY_PATH": str(tmp_path / "file"), info.variable: example}
        (tmp_path / "file").touch(0o600)
        settings = load_settings(None, {}, environ)
        assert settings.origin(info.name) == f"environment {info.variable}"
        assert info.doc.example != info.default


@pytest.mark.parametrize(
    "host",
    [
        "h",
        "shell.example.org",
        "shell.example.org.",
        "my_host",
        "1host",
        "xn--bcher-kva.example",
        "192.0.2.1",
        "2001:db8::1",
        "a" * 63,
    ],
)
def test_hosts(host: str) -> None:
    """Names and addresses of both families."""
    assert load({"REMOTE_HOST": host}).remote_host == host


def test_all_addresses() -> None:
    """They are something to listen on, and nothing to connect to."""
    assert load({"GATEWAY_HOST": "*"}).gateway_host == "*"
    assert "not '*'" in refusal({"REMOTE_HOST": "*"})


@pytest.mark.parametrize(
    "host",
    [
        "-v",
        "-oProxyCommand=x",
        "h;id",
        "h h",
        "h\n",
        "\nh",
        "a..b",
        ".h",
        "h-",
        "user@h",
        "h:22",
        "[::1]",
        "::1%eth0",
        "1.2.3",
        "1.2.3.256",
        "0x7f.1",
        "127.1",
        "0.0.0.0",  # noqa: S104 - refused
        "::",
        "224.0.0.1",
        "a" * 64,
        "a." * 127 + "a",
        "bücher.example",
        "h\0",
        "$(id)",
        "/etc",
    ],
)
def test_hosts_refused(host: str) -> None:
    """Options, ports, zones, almost-addresses, and whatever a shell might like."""
    line = refusal({"REMOTE_HOST": host})
    assert line.startswith("REMOTE_HOST must be a host name, an IPv4 or an IPv6 address, not ")
    assert line.endswith("(from environment REMOTE_HOST)")


@given(st.text())
def test_no_host_is_an_option_or_two_words(text: str) -> None:
    """Whatever is accepted as a host is one plain word that begins with no dash."""
    try:
        host = validators.host(text)
    except ValueError:
        return
    assert host.isascii()
    assert host.isprintable()
    assert not host.startswith("-")
    assert not set(host) & set(" /@%[]$`'\"\\;|&<>(){}*?!#")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("REMOTE_PORT", "0", "a port from 1 to 65535"),
        ("REMOTE_PORT", "65536", "a port from 1 to 65535"),
        ("REMOTE_PORT", "ssh", "a port from 1 to 65535"),
        ("GATEWAY_PORT", "22.5", "a port from 1 to 65535"),
        ("GATEWAY_PORT", "tcp://192.0.2.1:2222", "enableServiceLinks"),
        ("GATEWAY_HOST", "-v", "a host name"),
        ("REMOTE_KNOWN_HOSTS", "known_hosts", "the absolute path of a file"),
        ("REMOTE_KNOWN_HOSTS", "/a\nb", "control characters"),
        ("REMOTE_IGNORE_HOST_KEY", "maybe", "true or false"),
        ("GATEWAY_PERMIT_ROOT", "2", "true or false"),
        ("REMOTE_MOSH_SERVER", "-v", "a command name or the absolute path"),
        ("REMOTE_MOSH_SERVER", "mosh-server; id", "a command name or the absolute path"),
        ("REMOTE_MOSH_SERVER", "bin/mosh-server", "a command name or the absolute path"),
        ("REMOTE_MOSH_SERVER", "/opt/-x/", "a command name or the absolute path"),
        ("REMOTE_MOSH_PORTS", "60010:60001", "ascending"),
        ("REMOTE_MOSH_PORTS", "0:10", "from 1 to 65535"),
        ("REMOTE_MOSH_PORTS", "1:65536", "from 1 to 65535"),
        ("REMOTE_MOSH_PORTS", "60001-60999", "PORT or FIRST:LAST"),
        ("REMOTE_MOSH_PORTS", "60001:", "PORT or FIRST:LAST"),
        ("REMOTE_MOSH_PORTS", ":60999", "PORT or FIRST:LAST"),
        ("REMOTE_MOSH_PORTS", "60001:60999:", "PORT or FIRST:LAST"),
        ("GATEWAY_CACHE_TTL", "0", "seconds from 1 to 86400"),
        ("GATEWAY_CACHE_TTL", "1m", "seconds from 1 to 86400"),
        ("GATEWAY_SESSION_TIMEOUT", "59", "seconds from 60"),
        ("GATEWAY_MOSH_PREDICT", "sometimes", "adaptive, always, never or experimental"),
        ("GATEWAY_RUNTIME_DIR", "/", "an absolute path"),
        ("GATEWAY_RUNTIME_DIR", "run/gateway", "an absolute path"),
        ("GATEWAY_RUNTIME_DIR", "/run/../etc", "an absolute path"),
        ("GATEWAY_RUNTIME_DIR", "/run/a b", "an absolute path"),
        ("GATEWAY_RUNTIME_DIR", "/etc/gateway/run", "sshd has files of its own"),
        ("GATEWAY_RUNTIME_DIR", "/dev/gateway", "sshd has files of its own"),
        ("GATEWAY_RUNTIME_DIR", "/var/log", "sshd has files of its own"),
        ("GATEWAY_RUNTIME_DIR", "/run/", "sshd has files of its own"),
        ("GATEWAY_RUNTIME_DIR", "/run/sshd", "sshd has files of its own"),
        ("GATEWAY_RUNTIME_DIR", "/run/userdb/gateway", "sshd has files of its own"),
        ("GATEWAY_RUNTIME_DIR", "/run/" + "x" * 64, "too long for the sockets"),
        ("GATEWAY_UID_RANGE", "1000", "FIRST:LAST"),
        ("GATEWAY_UID_RANGE", "999:9999", "uids below 1000"),
        ("GATEWAY_UID_RANGE", "2000:3022", "at least 1024 uids"),
        ("GATEWAY_UID_RANGE", "60000:70000", "65534 and 65535"),
        ("GATEWAY_UID_RANGE", "2147482000:2147483648", "the last uid"),
        ("GATEWAY_UID_RANGE", "9000:1000", "at least 1024 uids"),
        ("GATEWAY_LOG_LEVEL", "loud", "debug, info, warning or error"),
    ],
)
def test_wrong_values(variable: str, value: str, expected: str) -> None:
    """The line names the setting, what would be right, the value and where it came from."""
    line = refusal({variable: value})
    assert line.startswith(f"{variable} must be ")
    assert expected in line
    assert line.endswith(f"(from environment {variable})")


def test_a_wrong_flag_and_a_wrong_line_of_the_file(tmp_path: Path) -> None:
    """The origin is spelled as the operator wrote it."""
    assert "not '0' (from --remote-port)" in refusal({}, remote_port="0")
    config = yaml(tmp_path, "# a comment\nREMOTE_PORT: zero\n")
    with pytest.raises(SettingsError, match=r"not 'zero' \(from .*config.yaml line 2: REMOTE_PORT\)"):
        load_settings(config, {}, ENOUGH)


def test_a_value_cannot_write_to_the_terminal() -> None:
    """Control characters come out as escapes, and a long value is cut."""
    assert "\x1b" not in refusal({"REMOTE_PORT": "\x1b]0;owned\x07"})
    assert len(refusal({"REMOTE_PORT": "9" * 5000})) < 200


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("on", True), ("1", True), ("no", False), ("0", False)])
def test_booleans(tmp_path: Path, text: str, *, value: bool) -> None:
    """The usual words, the same in a variable and in the file."""
    assert load({"GATEWAY_PERMIT_ROOT": text}).gateway_permit_root is value
    config = yaml(tmp_path, f"gateway_permit_root: {text}\n")
    assert load_settings(config, {}, ENOUGH).gateway_permit_root is value


def test_log_levels_in_capitals() -> None:
    """A level may be written as most programs write it."""
    assert load({"GATEWAY_LOG_LEVEL": "DEBUG"}).gateway_log_level == "debug"


def test_uid_range_of_its_own() -> None:
    """An explicit range is taken as it is."""
    assert load({"GATEWAY_UID_RANGE": "2000:3023"}).uid_range == (2000, 3023)


def test_uid_range_from_the_runtime_directory() -> None:
    """Two directories have two blocks, the same ones each time, inside of what a positive int holds."""
    first, second = (load({"GATEWAY_RUNTIME_DIR": path}).uid_range for path in ("/run/gateway", "/run/gateway-2"))
    assert first == load({"GATEWAY_RUNTIME_DIR": "/run/gateway/"}).uid_range == (2143617024, 2143682559)
    assert not set(range(first[0], first[1] + 1)) & set(range(second[0], second[1] + 1))


@pytest.mark.parametrize(
    ("uid_map", "uids"),
    [
        ("0 0 4294967295", (1_900_000_000, 1_900_065_535)),
        ("0 1000000 65536", (1000, 65533)),
        ("0 1000 1\n1 100000 65536", (1000, 65533)),
        ("0 100000 1000000", (65536, 131071)),
        ("0 0 1000\n1900000000 5 65536", (1_900_000_000, 1_900_065_535)),
        ("0 0 1000\n1900000000 5 2048", (1_900_000_000, 1_900_002_047)),
        ("0 1000 1", (1_900_000_000, 1_900_065_535)),
        ("", (1_900_000_000, 1_900_065_535)),
    ],
    ids=["no namespace", "65536", "rootless", "a million", "just these", "a part of these", "too few", "none"],
)
def test_uids_of_a_user_namespace(uid_map: str, uids: tuple[int, int]) -> None:
    """Where the usual uids are not mapped, others are chosen; where too few are, the start says what is missing."""
    assert validators.mapped_uid_range((1_900_000_000, 1_900_065_535), uid_map) == uids
    if uids[0] != 1_900_000_000:
        assert validators.uid_range("{}:{}".format(*uids)) == uids


@given(st.text(min_size=1))
def test_uid_ranges_are_valid_for_any_directory(name: str) -> None:
    """Every derived block passes the check for explicit ones."""
    first, last = validators.derived_uid_range(Path("/run") / name.encode(errors="replace").hex())
    assert validators.uid_range(f"{first}:{last}") == (first, last)
    assert last - first + 1 == 65536


PASSWORDS = {"GATEWAY_PASSWORD_AUTH": "true", "GATEWAY_PASSWORDS": "alice:s3cr3t"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"GATEWAY_AUTHORIZED_KEYS_PATH": "/etc/passwd", "GATEWAY_AUTHORIZED_KEYS_CONTENT": "x"}, "exclude each"),
        ({"GATEWAY_SSH_KEY_PATH": "/etc/passwd"}, "exclude each other"),
        ({"GATEWAY_PASSWORD_AUTH": "true"}, "needs GATEWAY_PASSWORDS"),
        ({"GATEWAY_PASSWORDS": "alice:s3cr3t"}, "needs GATEWAY_PASSWORD_AUTH=true"),
        ({**PASSWORDS, "GATEWAY_SSH_KEY_CONTENT": ""}, "opens no door on the remote"),
        ({**PASSWORDS, "GATEWAY_PASSWORDS": "alice"}, "pair 1 is wrong: it must be NAME:PASSWORD"),
        ({**PASSWORDS, "GATEWAY_PASSWORDS": "alice:s3cr3t,alice:x"}, "pair 2 is wrong: alice has one already"),
        ({**PASSWORDS, "GATEWAY_PASSWORDS": "alice:s3cr3t:x"}, "must be given hashed"),
        ({**PASSWORDS, "GATEWAY_PASSWORDS": "root:s3cr3t"}, "a name that can log in"),
        ({**PASSWORDS, "GATEWAY_ACCEPT_ANY_KEY": "true"}, "exclude each other"),
        ({"GATEWAY_ACCEPT_ANY_KEY": "true", "GATEWAY_SSH_KEY_CONTENT": ""}, "needs GATEWAY_SSH_KEY_PATH"),
        ({"GATEWAY_ACCEPT_ANY_KEY": "true", "GATEWAY_AUTHORIZED_KEYS_CONTENT": "x"}, "exclude each other"),
        ({"GATEWAY_ACCEPT_ANY_KEY": "true", "GATEWAY_AUTHORIZED_KEYS_PATH": "/etc/passwd"}, "exclude each other"),
        ({"GATEWAY_SSH_KEY_CONTENT": "", "GATEWAY_SSH_KEY_PATH": "/no/such"}, "/no/such is not a file"),
        ({"GATEWAY_AUTHORIZED_KEYS_PATH": "/etc"}, "/etc is not a file"),
    ],
)
def test_combinations_refused(environ: Mapping[str, str], expected: str) -> None:
    """What is right one by one and wrong together says which, from where, and the way out."""
    line = refusal(environ)
    assert expected in line
    assert "s3cr3t" not in line


@pytest.mark.parametrize(
    ("mode", "gid", "fits"),
    [(0o600, 0, True), (0o400, 0, True), (0o440, 0, True), (0o440, 1, False), (0o444, 0, False), (0o602, 0, False)],
)
def test_a_key_open_to_others_is_refused(tmp_path: Path, mode: int, gid: int, *, fits: bool) -> None:
    """As ssh has it; only root's group may read the key as well, as some orchestrators hand it over."""
    path = tmp_path / "key"
    path.touch()
    os.chown(path, 0, gid)
    path.chmod(mode)
    environ = {"REMOTE_HOST": "h", "GATEWAY_SSH_KEY_PATH": str(path)}
    if fits:
        load_settings(None, {}, environ)
    else:
        with pytest.raises(SettingsError, match=f"mode {mode:04o}.*chmod 0600"):
            load_settings(None, {}, environ)


SECRET = "hunter2-hunter2"  # noqa: S105 - made up, to look for


@pytest.mark.parametrize(
    "value",
    [SECRET, f"-----BEGIN {SECRET}", base64.b64encode(SECRET.encode()).decode(), f"{SECRET}\n", "x" * 5000],
)
def test_secrets_stay_secret(value: str) -> None:
    """A wrong secret is neither in the line nor anywhere in the traceback, repr or str."""
    with pytest.raises(SettingsError) as caught:
        load({"GATEWAY_SSH_KEY_CONTENT": value})
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert value.strip() not in text
    assert SECRET not in text
    assert "base64 -w0" in caught.value.message


def test_settings_do_not_show_their_secrets() -> None:
    """What is logged by accident holds no key."""
    settings = load()
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert KEY_CONTENT not in shown
    assert "b3BlbnNzaC1rZXktdjEA" not in shown
    assert {info.variable for info in describe(Settings) if info.secret} == {
        "GATEWAY_SSH_KEY_CONTENT",
        "GATEWAY_PASSWORDS",
    }


def test_settings_are_frozen() -> None:
    """Nobody changes a setting after it was judged."""
    with pytest.raises(ValueError, match="frozen"):
        load().remote_port = 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("remote_hots: h\n", "line 1: 'remote_hots' is not a setting; did you mean remote_host?"),
        ("\ngatway_port: 1\n", "line 2: 'gatway_port' is not a setting; did you mean gateway_port?"),
        ("zzz: 1\n", "line 1: 'zzz' is not a setting"),
        ("Remote_Host: h\n", "is not a setting; did you mean remote_host?"),
        ("remote_port: [1, 2]\n", "REMOTE_PORT must be a single value"),
        ("remote_port: {a: 1}\n", "REMOTE_PORT must be a single value"),
        ("remote_port: 1\nREMOTE_PORT: 2\n", "line 2: remote_port is given twice"),
        ("- remote_host\n", "it must hold lines of the form"),
        ("just text\n", "it must hold lines of the form"),
        ("[a, b]: 1\n", "line 1: '' is not a setting"),
        ("remote_host: *hunter2\n", "line 1: not YAML"),
        ("remote_host: 'h\n", "not YAML"),
        ("\0", "not YAML"),
        ('remote_host: "hunter2\\U00110000"\n', "not YAML"),
        ('remote_host: "hunter2\\UFFFFFFFF"\n', "not YAML"),
        (f"%YAML 1.{'1' * 5000}\n--- hunter2\n", "not YAML"),
        ("a: " + "[" * 5000, "not YAML"),
        ("#" * 2_000_000, "larger than"),
        ("remote_host: !!python/object/apply:os.system [id]\n", "REMOTE_HOST must be a single value"),
    ],
)
def test_yaml_refused(tmp_path: Path, text: str, expected: str) -> None:
    """A file that is wrong costs one line with the place, and never quotes a value."""
    with pytest.raises(SettingsError) as caught:
        load_settings(yaml(tmp_path, text), {}, ENOUGH)
    assert expected in caught.value.message
    assert "hunter2" not in caught.value.message
    assert "\n" not in caught.value.message


def test_yaml_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is an error, not an empty configuration."""
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load_settings(tmp_path / "none.yaml", {}, ENOUGH)


@pytest.mark.parametrize("text", ["", "# nothing\n", "remote_port:\n", "remote_port: null\n", "remote_port: ''\n"])
def test_yaml_that_says_nothing(tmp_path: Path, text: str) -> None:
    """An empty file, and an empty value, leave the default."""
    assert load_settings(yaml(tmp_path, text), {}, ENOUGH).remote_port == 22


_SECRETS = "gateway_password_auth: true\ngateway_passwords: alice:s3cr3t\n"
_FILES = {
    "config with a secret": (_SECRETS, None, True),
    "config": ("remote_port: 22\n", None, False),
    "key": (KEY_CONTENT, "GATEWAY_SSH_KEY_CONTENT_FILE", True),
    "passwords": ("alice:s3cr3t", "GATEWAY_PASSWORDS_FILE", True),
    "authorized_keys": ("ssh-ed25519 AAAA", "GATEWAY_AUTHORIZED_KEYS_CONTENT_FILE", False),
    "host": ("remote.example", "REMOTE_HOST_FILE", False),
}
"""Files that hold settings: what is in them, the variable that names them, and whether it is a secret."""


def _load_file(path: Path, variable: str | None) -> Settings:
    environ = {"REMOTE_HOST": "shell.example", "GATEWAY_SSH_KEY_CONTENT": KEY_CONTENT}
    if variable is None:
        return load_settings(path, {}, environ)
    environ.pop(variable.removesuffix("_FILE"), None)
    password = {"GATEWAY_PASSWORD_AUTH": "true"} if "PASSWORDS" in variable else {}
    return load_settings(None, {}, {**environ, **password, variable: str(path)})


@pytest.mark.parametrize(("content", "variable", "secret"), _FILES.values(), ids=_FILES)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o620, 0o602, 0o660, 0o606])
def test_files_that_hold_settings_are_checked(
    tmp_path: Path, content: str, variable: str | None, mode: int, *, secret: bool
) -> None:
    """Nobody else may write what decides who gets in, nor read what is secret: the error has the remedy."""
    path = tmp_path / "file"
    path.write_text(content)
    os.chown(path, -1, 0)
    path.chmod(mode)
    # To root's group a secret may be open, as to ssh (ssh(1)).
    if mode & (0o006 if secret else 0o022):
        with pytest.raises(KeyFileError) as caught:
            _load_file(path, variable)
        assert str(caught.value).startswith(f"environment {variable}: " if variable else "the settings: ")
        assert str(caught.value).endswith(f"chmod {'0600' if secret else '0644'} {path}")
    else:
        _load_file(path, variable)


@pytest.mark.parametrize(("content", "variable", "secret"), _FILES.values(), ids=_FILES)
def test_files_of_settings_that_others_could_replace(
    tmp_path: Path, content: str, variable: str | None, *, secret: bool
) -> None:
    """The owner of the file, or of what a link to it goes through, decides as its writers do."""
    del secret
    directory = tmp_path / "theirs"
    directory.mkdir()
    path = directory / "file"
    path.write_text(content)
    path.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(path)
    _load_file(link, variable)
    for spoiled, uid, mode in ((path, 1234, 0o600), (directory, 1234, 0o755), (directory, 0, 0o777)):
        os.chown(spoiled, uid, 0)
        spoiled.chmod(mode)
        for name in (path, link):
            with pytest.raises(KeyFileError):
                _load_file(name, variable)
        os.chown(spoiled, 0, 0)
        spoiled.chmod(0o600 if spoiled is path else 0o755)
    _load_file(link, variable)
    path.unlink()
    for make in (path.mkdir, path.rmdir):
        make()
        with pytest.raises(SettingsError):
            _load_file(link, variable)


@pytest.mark.parametrize("variable", [None, "GATEWAY_PASSWORDS_FILE", "GATEWAY_AUTHORIZED_KEYS_CONTENT_FILE"])
def test_a_fifo_is_not_waited_for(tmp_path: Path, variable: str | None) -> None:
    """Nobody may ever write to it."""
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(SettingsError, match="it is not a file"):
        _load_file(tmp_path / "fifo", variable)


@pytest.mark.parametrize(("content", "variable", "secret"), _FILES.values(), ids=_FILES)
def test_a_link_in_the_middle_that_others_could_change(
    tmp_path: Path, content: str, variable: str | None, *, secret: bool
) -> None:
    """Each directory on the way counts, also one between two links, and so does the owner of each link."""
    del secret
    directory, theirs = tmp_path / "ours", tmp_path / "theirs"
    directory.mkdir()
    theirs.mkdir()
    (directory / "file").write_text(content)
    (directory / "file").chmod(0o600)
    (theirs / "link").symlink_to("../ours/file")
    path = tmp_path / "path"
    path.symlink_to(theirs / "link")
    _load_file(path, variable)
    os.chown(theirs, 1234, 0)
    with pytest.raises(KeyFileError, match=r"could be replaced by uid 1234, to whom \S+theirs belongs"):
        _load_file(path, variable)
    os.chown(theirs, 0, 0)
    theirs.chmod(0o1777)
    _load_file(path, variable)
    os.chown(theirs / "link", 1234, 0, follow_symlinks=False)
    # Where fs.protected_symlinks is on (proc(5)), the kernel does not even follow it.
    with pytest.raises(SettingsError, match=r"a link that others could change: \S+theirs/link|Permission denied"):
        _load_file(path, variable)


def test_what_is_overridden_is_in_its_file_all_the_same(tmp_path: Path) -> None:
    """A secret that everybody can read is one, whichever source wins."""
    path = yaml(tmp_path, _SECRETS)
    with pytest.raises(KeyFileError, match="it holds a secret"):
        load_settings(path, {}, {**ENOUGH, "GATEWAY_PASSWORDS": "alice:other"})


def test_settings_from_a_shells_pipe_have_no_owner() -> None:
    """What a shell hands over as <(command) is taken."""
    read, write = os.pipe()
    os.write(write, b"remote_host: shell.example\n")
    os.close(write)
    try:
        settings = load_settings(Path(f"/dev/fd/{read}"), {}, {"GATEWAY_SSH_KEY_CONTENT": KEY_CONTENT})
        assert settings.remote_host == "shell.example"
    finally:
        os.close(read)


def test_a_setting_whose_name_ends_as_those_of_files_do() -> None:
    """REMOTE_AUTHORIZED_KEYS_FILE names no file that holds REMOTE_AUTHORIZED_KEYS, and is no unknown setting."""
    settings = load({"REMOTE_AUTHORIZED_KEYS_FILE": "/etc/ssh/keys/%u"})
    assert settings.remote_authorized_keys_file == "/etc/ssh/keys/%u"
    assert not [text for text in settings.warnings if "AUTHORIZED_KEYS" in text]


@pytest.mark.parametrize("path", ["/etc/gateway/key ", "/etc/gateway/key\t"])
def test_a_path_with_a_blank_at_its_end_is_quoted(path: str) -> None:
    """Nobody sees it otherwise."""
    assert f"not {path!r}" in refusal({"REMOTE_KNOWN_HOSTS": path})


_KEY_LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGi1xVOgDIyMUtRJwV1zP7RBT2D1v1h0HbSkcp1yTXNv"


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (f'"{_KEY_LINE} me"', 1, "begins with a quotation mark"),
        (f"# mine\n\n'{_KEY_LINE}'", 3, "begins with a quotation mark"),
        (f"{_KEY_LINE} me\\n{_KEY_LINE} you", 1, "where a new line should begin"),
        (f"\ufeff{_KEY_LINE}", 1, "byte order mark"),
        (f"{_KEY_LINE}\nssh-ed25519 AAAA\n", 2, "has no key of a type that is served"),
        (f"{_KEY_LINE}\nno-such-option {_KEY_LINE}\n", 2, "its options are not ones that OpenSSH takes"),
        (f'{_KEY_LINE}\nfrom="10.0.0.0/999" {_KEY_LINE}\n', 2, "versions of OpenSSH read it differently"),
        (f"{_KEY_LINE}\n\n# fine\n   \nrestrict,pty {_KEY_LINE}\r\n", 0, ""),
    ],
)
@pytest.mark.parametrize("by_path", [False, True])
def test_lines_of_local_keys_that_let_nobody_in_are_named(
    tmp_path: Path, content: str, line: int, reason: str, *, by_path: bool
) -> None:
    """Each is a warning with its number, whether the lines are a setting or in a file."""
    path = tmp_path / "keys"
    path.write_text(content, "utf-8")
    given = {"GATEWAY_AUTHORIZED_KEYS_PATH": str(path)} if by_path else {"GATEWAY_AUTHORIZED_KEYS_CONTENT": content}
    found = [text for text in load(given).warnings if "permits no key" in text]
    assert len(found) == bool(line)
    assert all(f" line {line} permits no key: " in text and reason in text for text in found)


def test_yaml_values_are_what_was_written(tmp_path: Path) -> None:
    """YAML's own ideas about numbers do not come into it: 0700 is a name, 1:30 is not 90, a block keeps its lines."""
    config = yaml(
        tmp_path, "remote_host: 0x1f.example\nremote_mosh_server: 0700\ngateway_authorized_keys_content: |\n  a\n  b\n"
    )
    settings = load_settings(config, {}, {"GATEWAY_SSH_KEY_CONTENT": KEY_CONTENT})
    assert settings.remote_mosh_server == "0700"
    assert settings.gateway_authorized_keys_content == "a\nb\n"
    with pytest.raises(SettingsError, match="not '1:30'"):
        load_settings(yaml(tmp_path, "remote_port: 1:30\n"), {}, ENOUGH)


def test_unknown_variables_are_warnings() -> None:
    """A misspelt variable is told with the nearest name; those of Kubernetes and Docker are not worth a line."""
    environ = {
        "GATEWAY_HOTS": "x",
        "REMOTE_FROBNICATE": "x",
        "GATEWAY_SERVICE_HOST": "192.0.2.1",
        "GATEWAY_PORT_2222_TCP_ADDR": "192.0.2.1",
        "GATEWAYS": "x",
        "PATH": "x",
    }
    warnings = [line for line in load(environ).warnings if line.startswith("environment")]
    assert warnings == [
        "environment GATEWAY_HOTS is not a setting and is ignored; did you mean GATEWAY_HOST?",
        "environment REMOTE_FROBNICATE is not a setting and is ignored",
    ]


def test_what_is_allowed_and_odd_is_a_warning(tmp_path: Path) -> None:
    """Switching the host key check off, and a file or directory of keys that is not there, are told at start."""
    assert any("between the gateway and the remote" in line for line in load({"REMOTE_IGNORE_HOST_KEY": "1"}).warnings)
    missing = str(tmp_path / "none")
    for none in (missing, str(tmp_path)):
        assert any(f"{none} is not a file" in line for line in load({"REMOTE_KNOWN_HOSTS": none}).warnings)
    told = "GATEWAY_KEYS_DIR (from environment GATEWAY_KEYS_DIR): %s is not a directory, so no file is taken from it"
    for where, warned in ((missing, True), ("/etc/passwd", True), (str(tmp_path), False)):
        assert (told % where in load({"GATEWAY_KEYS_DIR": where}).warnings) == warned
    assert load({"REMOTE_KNOWN_HOSTS": "/etc/passwd"}).warnings == ()


@pytest.mark.parametrize(
    ("lines", "has_key"),
    [
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGi1xVOg alice", True),
        ('# ours\n\n  restrict,command="a # b" ssh-rsa\tAAAAB3NzaC1yc2E= bob\n', True),
        ("cert-authority ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGi1xVOg", True),
        ("/etc/gateway/authorized_keys", False),
        ("# ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGi1xVOg\n", False),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAAC3NzaC1lZDI1NTE5\n", False),
    ],
)
def test_local_keys_without_a_key_are_a_warning(tmp_path: Path, lines: str, *, has_key: bool) -> None:
    """Settings that let nobody in because they hold no key, as a path in the place of lines, are told at start."""
    path = tmp_path / "authorized_keys"
    path.write_text(lines)
    for name, value in (("GATEWAY_AUTHORIZED_KEYS_CONTENT", lines), ("GATEWAY_AUTHORIZED_KEYS_PATH", str(path))):
        warnings = load({name: value}).warnings
        odd = f"{name} (from environment {name}) has no line with a key: nobody gets in by one"
        assert (odd not in warnings) == has_key


def test_the_public_key_is_not_the_private_one(tmp_path: Path) -> None:
    """It is told before its mode is looked at: there is no mode in which it would do."""
    path = tmp_path / "id_ed25519.pub"
    path.write_text("ssh-ed25519 AAAA gateway")
    path.chmod(0o644)
    environ = {"GATEWAY_SSH_KEY_PATH": str(path), "GATEWAY_SSH_KEY_CONTENT": ""}
    said = f"environment GATEWAY_SSH_KEY_PATH) is the public key; name the private one: {tmp_path / 'id_ed25519'}"
    assert refusal(environ).endswith(said)


def test_syslog_without_a_socket_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would be logged; where a program listens there is none."""
    assert not any("/dev/log" in warning for warning in load({"GATEWAY_LOG": "stderr"}).warnings)
    for there in (True, False):
        monkeypatch.setattr("os.path.exists", lambda path, there=there: there if path == "/dev/log" else True)
        found = [warning for warning in load({"GATEWAY_LOG": "syslog"}).warnings if "/dev/log" in warning]
        assert bool(found) is not there


def test_the_wrong_file_is_not_quoted(tmp_path: Path) -> None:
    """A path that leads to somebody's secret by mistake does not put the secret into the log."""
    file = tmp_path / "passwords"
    file.write_text("alice:s3cr3t")
    said = refusal({"REMOTE_PORT_FILE": str(file)})
    assert said.startswith("REMOTE_PORT must be a port from 1 to 65535")
    assert str(file) in said
    assert "s3cr3t" not in said


@pytest.mark.parametrize("content", ["", "\n", "\r\n\n"])
def test_an_empty_file_is_no_value(tmp_path: Path, content: str) -> None:
    """A secret that was never filled in stops the start; it does not count as not set."""
    file = tmp_path / "empty"
    file.write_text(content)
    assert refusal({"GATEWAY_PASSWORDS_FILE": str(file)}) == f"GATEWAY_PASSWORDS_FILE: {file} is empty"

"""Writes our sshd's configuration from the templates in ``sshd_config.d``, for the installed version of sshd."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import helpers
from gatewayctl.runtime.directory import Runtime
from helpers.broker.accounts.userdb import AUTH_USER
from helpers.protocol.access_mode import AccessMode
from helpers.protocol.errors import GatewayError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gatewayctl.settings.model import Settings

# The oldest version that the templates were checked with; RequiredRSASize came in 9.1, UnusedConnectionTimeout in 9.2.
OLDEST_SSHD = (9, 2)
# First line of every file, which identifies our own files.
MARK = "# Written by gatewayctl render-config; changes are overwritten.\n"
# Names that nss-systemd or the gateway's own files resolve.
LOCAL_USERS = ("sshd", "nobody")
SSHD_TIMEOUT_S = 10
# See helpers/launch.py; text is UTF-8 (or bytes as surrogates) with any locale that a client requests.
PYTHON_OPTIONS = ("-I", "-S", "-X", "utf8")

_WORD_SPECIAL = re.compile(r"([\\\"' ])")


@dataclass(frozen=True)
class SshdContext:
    """The variables of the templates.

    Attributes:
        version: Major and minor version of the sshd that will read the result.
        runtime_dir: GATEWAY_RUNTIME_DIR.
        address: GATEWAY_HOST.
        port: GATEWAY_PORT.
        host_key: GATEWAY_HOST_KEY_PATH.
        authorized_keys: The directory of the files from which sshd accepts keys without asking the broker.
        authorized_keys_command: The key command and its first arguments; sshd's tokens are appended.
        authorized_keys_command_user: The user it runs as.
        force_command: The command that runs instead of the client's.
        permit_root: GATEWAY_PERMIT_ROOT.
        password_authentication: GATEWAY_PASSWORD_AUTH.
        agent_forwarding: Whether users forward their agents, because the gateway has no key.
        any_key: Whether sshd accepts any key: the remote authenticates agents, or GATEWAY_ACCEPT_ANY_KEY is on.
        trusted_proxies: GATEWAY_TRUSTED_PROXIES.
        syslog: Whether sshd logs to syslog.
        pid_file: The file to which sshd writes its pid.
    """

    version: tuple[int, int]
    runtime_dir: Path
    address: str
    port: int
    host_key: Path
    authorized_keys: Path
    authorized_keys_command: tuple[str, ...]
    authorized_keys_command_user: str
    force_command: tuple[str, ...]
    permit_root: bool
    password_authentication: bool
    agent_forwarding: bool
    any_key: bool
    pid_file: Path
    trusted_proxies: str = ""
    syslog: bool = False


def sshd_version(sshd: Path) -> tuple[int, int]:
    """Determine the version of an sshd.

    From 9.2 on it has ``-V``; older ones reject the option and print their version with the error.

    Raises:
        GatewayError: sshd cannot be started, is not OpenSSH, or is older than `OLDEST_SSHD`.
    """
    result = _run(sshd, "-V")
    match = re.search(r"OpenSSH_(\d{1,3})\.(\d{1,3})", result.stderr + result.stdout)
    if match is None:
        raise GatewayError(f"{sshd} does not say that it is OpenSSH")
    version = int(match[1]), int(match[2])
    if version < OLDEST_SSHD:
        needed = ".".join(map(str, OLDEST_SSHD))
        raise GatewayError(f"{sshd} is OpenSSH {match[1]}.{match[2]}; {needed} or newer is needed")
    return version


def sshd_context(settings: Settings, version: tuple[int, int]) -> SshdContext:
    """Return the context for these settings and this installation."""
    runtime = Runtime(settings.gateway_runtime_dir)
    has_key = settings.gateway_ssh_key_path is not None or settings.gateway_ssh_key_content is not None
    local = settings.gateway_authorized_keys_path is not None or settings.gateway_authorized_keys_content is not None
    mode = AccessMode.of(has_key=has_key, has_local_keys=local, accepts_any_key=settings.gateway_accept_any_key)
    launch = (sys.executable, *PYTHON_OPTIONS, str(Path(helpers.__file__).resolve().parent / "launch.py"))
    socket = str(runtime.broker_socket)
    return SshdContext(
        version=version,
        runtime_dir=runtime.root,
        address=settings.gateway_host,
        port=settings.gateway_port,
        host_key=settings.gateway_host_key_path,
        authorized_keys=runtime.authorized_keys,
        authorized_keys_command=(*launch, "authorized_keys", socket),
        authorized_keys_command_user=AUTH_USER,
        force_command=(*launch, "session", socket),
        permit_root=settings.gateway_permit_root,
        password_authentication=settings.gateway_password_auth,
        trusted_proxies=settings.gateway_trusted_proxies,
        syslog=settings.gateway_log == "syslog",
        agent_forwarding=mode.passes_agent_through,
        any_key=mode.any_key_passes,
        pid_file=runtime.pid_file,
    )


def render(context: SshdContext) -> dict[str, str]:
    """Render the templates.

    Returns:
        File name to text, in the order in which sshd reads them.

    Raises:
        SettingsError: A path or name has a character that cannot be quoted in sshd_config.
    """
    import jinja2  # noqa: PLC0415 - most commands do not need it

    directory = template_directory()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(directory),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - not HTML; the filters quote for sshd
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"word": word, "pattern": pattern, "argv": argv, "shell": shell}
    known = {field.name: getattr(context, field.name) for field in fields(context)}
    known["denied_users"] = sorted({*LOCAL_USERS, context.authorized_keys_command_user})
    names = sorted(path.name for path in directory.glob("*.conf"))
    return {name: MARK + environment.get_template(name).render(known) for name in names}


def template_directory() -> Path:
    """Find the templates: in the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "sshd_config.d"
    return installed if installed.is_dir() else package.parent / "sshd_config.d"


def is_written(directory: Path, files: Mapping[str, str]) -> bool:
    """Whether rendered files are what is on disk.

    Args:
        directory: As for `write`.
        files: The result of `render`.
    """
    snippets = directory / "sshd_config.d"
    try:
        return {path.name: path.read_text("utf-8") for path in snippets.glob("*.conf")} == dict(files)
    except OSError:
        return False


def write(directory: Path, files: Mapping[str, str]) -> Path:
    """Write rendered files: ``sshd_config`` and, included by it, the snippets in ``sshd_config.d``.

    Each file is replaced atomically and never world-writable; our own snippets that are no longer rendered are
    removed.

    Args:
        directory: Made if missing, with mode 0755.
        files: The result of `render`.

    Returns:
        The main file, for ``sshd -f``.

    Raises:
        GatewayError: The files cannot be written, or an existing file was not written by us.
    """
    snippets = directory / "sshd_config.d"
    main = directory / "sshd_config"
    pattern = f"{word(str(snippets))}/*.conf"
    texts = {snippets / name: text for name, text in files.items()}
    texts[main] = f"{MARK}# Everything is in the snippets.\nInclude {pattern}\n"
    try:
        for path in (directory, snippets):
            _make_directory(path)
        stale = {path for path in snippets.glob("*.conf") if path not in texts}
        for path in (*texts, *stale):
            _require_ours(path)
        for path, text in texts.items():
            _replace(path, text)
        for path in stale:
            path.unlink()
    except OSError as exc:
        raise GatewayError(f"cannot write {exc.filename or directory}: {exc.strerror}") from exc
    return main


def check(sshd: Path, config_file: Path, prefix: Iterable[str] = ()) -> None:
    """Have sshd check a configuration, including its host keys (``sshd -t``).

    Args:
        sshd: The program.
        config_file: The configuration.
        prefix: The first words of its command line, if sshd has another view of the files: `gatewayctl.sshd.namespace`.

    Raises:
        GatewayError: sshd's error, on one line.
    """
    result = _run(sshd, "-t", "-f", str(config_file), prefix=prefix)
    missing = re.search(r"^Missing privilege separation directory: (/\S+)\s*$", result.stderr, re.MULTILINE)
    if missing and os.geteuid() == 0:
        # Debian makes it when the host's own sshd starts, which may never happen (sshd.c, PRIVSEP_CHROOT_DIR).
        Path(missing[1]).mkdir(mode=0o755, exist_ok=True)
        result = _run(sshd, "-t", "-f", str(config_file), prefix=prefix)
    if result.returncode != 0:
        said = "; ".join(line.strip() for line in result.stderr.splitlines() if line.strip())
        raise GatewayError(f"{sshd} refuses {config_file}: {said or f'status {result.returncode}'}")


def word(text: object) -> str:
    """Quote one argument for sshd_config, as OpenSSH's argv_split (misc.c) reads it."""
    return _WORD_SPECIAL.sub(r"\\\1", _one_line(str(text)))


def pattern(text: object) -> str:
    """Quote a literal prefix of an argument in which sshd expands tokens (percent_expand)."""
    return word(str(text).replace("%", "%%"))


def argv(arguments: Iterable[str]) -> str:
    """Quote a key command: argv_split, and from the second word on percent_expand (auth2-pubkey.c)."""
    program, *rest = arguments
    return " ".join([word(program), *map(pattern, rest)])


def shell(arguments: Iterable[str]) -> str:
    """Quote a command for the user's shell, which gets ForceCommand unchanged."""
    return shlex.join(map(_one_line, arguments))


def _one_line(text: str) -> str:
    if not text or not text.isprintable():
        raise SettingsError(f"{text!r} cannot stand in sshd_config: it is empty or has control characters")
    return text


def _run(sshd: Path, *arguments: str, prefix: Iterable[str] = ()) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [*prefix, sshd, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SSHD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise GatewayError(f"{sshd} {arguments[0]} does not end within {SSHD_TIMEOUT_S} s") from exc
    except OSError as exc:
        raise GatewayError(f"{sshd} cannot be started: {exc.strerror}") from exc


def _make_directory(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(parents=True)
        path.chmod(0o755)


def _require_ours(path: Path) -> None:
    if path.exists() and not path.read_bytes().startswith(MARK.encode()):
        raise GatewayError(f"{path} was not written by gatewayctl: choose another directory")


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

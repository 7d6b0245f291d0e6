"""``gatewayctl serve``: runs the gateway in the foreground."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

import helpers
from gatewayctl.commands.settings_flags import secrets_note, settings_options
from gatewayctl.runtime.directory import SYSTEM_LOG, Runtime, check_root_only, check_uids_free, ensure_host_key
from gatewayctl.runtime.processes import find
from gatewayctl.settings import key_files, validators
from gatewayctl.settings.key_files import KeyFileError
from gatewayctl.settings.model import Settings
from gatewayctl.settings.passwords import hashed_passwords, placeholder_hashes_for
from gatewayctl.sshd import config
from gatewayctl.supervisor import handover
from gatewayctl.supervisor.plan import Plan
from gatewayctl.supervisor.supervisor import Supervisor, make_parts
from helpers.protocol.broker_config import KEY_SETTINGS, BrokerConfig
from helpers.protocol.errors import GatewayError, SettingsError
from helpers.protocol.event_log import EventLog

KEY_FILES_EVERY_S = 5.0
"""Seconds between checks whether a key file has been corrected."""


@click.command(epilog=secrets_note())
@settings_options
def serve(load: Callable[[], Settings]) -> None:
    """Run the gateway in the foreground.

    SIGHUP reloads the settings without affecting live sessions. SIGTERM and Ctrl-C end the sessions and the gateway.
    """
    # Before the checks of files, which assume root.
    if os.geteuid() != 0:
        msg = "serve must be started by root: sshd changes to the uid of each user"
        raise SettingsError(msg)
    state = handover.inherited(os.environ)
    os.environ.pop(handover.VARIABLE, None)
    if state is not None and state[1]:
        check_handover(load, state[0])
        return
    if os.getpid() == 1 and state is None:
        wait_for_key_files(load)
    sys.exit(run(load, None if state is None else state[0]))


def wait_for_key_files(load: Callable[[], Settings]) -> None:
    """Wait until the key files are correct, if nothing else is wrong.

    This is for process 1 of a container, which the engine would otherwise restart again and again until the operator
    has corrected a file.

    Args:
        load: Reads the settings.

    Raises:
        GatewayError: Another setting is wrong.
        SystemExit: A signal ended the wait; the status is that of the error.
    """
    # The kernel ignores signals to process 1 for which it has no handler.
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    said = ""
    while True:
        try:
            settings = load()
            for path in (settings.gateway_authorized_keys_path, settings.remote_known_hosts):
                if path is not None and path.is_file():
                    key_files.check_public(path)
            if settings.gateway_host_key_path.exists():
                ensure_host_key(settings.gateway_host_key_path)
        except KeyFileError as error:
            if error.message != said:
                said = error.message
                click.echo(f"gatewayctl: {said} (waiting until that is done)", err=True)
            arrived = signal.sigtimedwait(signals, KEY_FILES_EVERY_S)
            if arrived is not None and arrived.si_signo != signal.SIGHUP:
                sys.exit(error.status)
        else:
            return


def check_handover(load: Callable[[], Settings], state: handover.State) -> None:
    """Check that this version can take over a running gateway, without changing anything.

    Args:
        load: Reads the settings.
        state: The running gateway's state.

    Raises:
        GatewayError: It cannot.
    """
    settings = _fixed(load(), state.fixed)
    plan = make_plan(settings, Runtime(settings.gateway_runtime_dir))
    config.render(plan.sshd)
    handover.check_new_version()


def _fixed(settings: Settings, fixed: list[str]) -> Settings:
    """Return the settings.

    Raises:
        SettingsError: One is another that changes only by a restart.
    """
    if settings.fixed != fixed:
        msg = "GATEWAY_RUNTIME_DIR, GATEWAY_UID_RANGE and GATEWAY_LOG change only by a restart"
        raise SettingsError(msg)
    return settings


def run(load: Callable[[], Settings], state: handover.State | None = None) -> int:
    """Run the gateway until a signal ends it.

    Args:
        load: Reads the settings; called again at each SIGHUP.
        state: The state of the gateway that runs already; None if it is to be started.

    Returns:
        The exit status.

    Raises:
        GatewayError: The gateway cannot run.
    """
    settings = load()
    log = EventLog("gatewayctl", settings.gateway_log_level, syslog=settings.gateway_log == "syslog")
    with _log_failure(log, syslog=settings.gateway_log == "syslog"):
        for warning in settings.warnings:
            log.warning("setting", text=warning)
            if settings.gateway_log == "syslog" and not SYSTEM_LOG.exists():
                click.echo(f"gatewayctl: warning: {warning}", err=True)
        runtime = Runtime(settings.gateway_runtime_dir)
        lock = prepare(settings, runtime, log) if state is None else state.lock
        try:
            fixed = settings.fixed
            plan = make_plan(settings, runtime)
            del settings  # with the plain text of passwords

            def replan() -> Plan:
                return make_plan(_fixed(load(), fixed), runtime)

            parts = make_parts(runtime, plan, log, state)
            return Supervisor(runtime, plan, replan, parts, log, lock).run(state)
        finally:
            os.close(lock)


def prepare(settings: Settings, runtime: Runtime, log: EventLog) -> int:
    """Check the machine, prepare the runtime directory, and make the host key if there is none.

    Returns:
        The descriptor that holds the runtime directory's lock.

    Raises:
        GatewayError: The gateway cannot run here.
    """
    for program, package in (("mosh-client", "mosh"), ("ssh-keygen", "openssh-client")):
        find(program, package)
    check_root_only(Path(helpers.__file__), "the installation of gatewayctl in")
    check_root_only(Path(sys.executable), "the Python")
    first, last = settings.uid_range
    check_uids_free(range(first, last + 1))
    runtime.prepare()
    lock = runtime.lock()
    try:
        runtime.change_state_owner(first)
        if ensure_host_key(settings.gateway_host_key_path):
            log.info("host_key_made", path=settings.gateway_host_key_path)
    except BaseException:
        os.close(lock)
        raise
    return lock


@contextmanager
def _log_failure(log: EventLog, *, syslog: bool) -> Iterator[None]:
    """Log to syslog why the gateway ends; without syslog, `main` writes it to standard error."""
    try:
        yield
    except GatewayError as error:
        if syslog:
            log.error("failed", reason=error.message)  # noqa: TRY400 - a sentence without a traceback
        raise


def make_plan(settings: Settings, runtime: Runtime) -> Plan:
    """Derive the configuration of the broker and sshd from the settings.

    The first two uids of the range are the gateway's own: the broker's, and AuthorizedKeysCommand's.

    Raises:
        GatewayError: sshd is missing, or the key's file cannot be read.
    """
    first, last = settings.uid_range
    key, certificate = read_key(settings)
    secret = settings.gateway_passwords
    passwords = {} if secret is None else hashed_passwords(secret.get_secret_value())
    placeholder_key = "" if secret is None else hashlib.sha256(secret.get_secret_value().encode()).hexdigest()
    known_hosts = None if settings.remote_ignore_host_key else str(settings.remote_known_hosts)
    sshd_program = Path(find("sshd", "openssh-server"))
    sshd = config.sshd_context(settings, config.sshd_version(sshd_program))
    shared = {field.name for field in fields(BrokerConfig)} & set(Settings.model_fields)
    values: dict[str, Any] = {name: getattr(settings, name) for name in shared}
    values |= {name: str(value) for name, value in values.items() if isinstance(value, Path)}
    broker = BrokerConfig(
        **values,
        known_hosts=known_hosts,
        ssh_key=key,
        ssh_certificate=certificate,
        authorized_keys_files=validators.authorized_keys_files(settings.remote_authorized_keys_file),
        passwords=passwords,
        placeholder_hashes=placeholder_hashes_for(passwords.values()) or ["*"],
        placeholder_key=placeholder_key,
        state_dir=str(runtime.state),
        homes_dir=str(runtime.home),
        agent_socket=str(runtime.agent_socket),
        uid_start=first + 2,
        uid_stop=last + 1,
        auth_uid=first + 1,
        syslog=settings.gateway_log == "syslog",
    )
    return Plan(broker, sshd, first, settings.fixed, settings.gateway_stop_timeout)


def read_key(settings: Settings) -> tuple[str | None, str | None]:
    """Read the gateway's private key, and the certificate next to its file if there is one.

    Returns:
        Both as text; None for a missing one. Without a key, users forward their agents.

    Raises:
        SettingsError: The key cannot be read, or is not text.
    """
    content, path = settings.key_content, settings.gateway_ssh_key_path
    try:
        if content is not None:
            return content.decode("ascii"), None
        if path is None:
            return None, None
        certificate = path.with_name(path.name + "-cert.pub")
        # Its comment, which is not used, may have any encoding.
        beside = certificate.read_text(encoding="utf-8", errors="replace") if certificate.exists() else None
        return path.read_text(encoding="ascii"), beside
    except (OSError, UnicodeDecodeError) as exc:
        msg = f"{KEY_SETTINGS} cannot be read as a key file"
        raise SettingsError(msg) from exc

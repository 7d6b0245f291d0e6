"""What the remote's sshd may want of a login: other algorithms, and a second factor. Each refusal says what it is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from helpers.protocol.errors import NoCommonAlgorithmError, PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.users import User


@pytest.fixture
def own(make_lab: Callable[..., Lab]) -> Lab:
    """A lab whose remote the test may change."""
    return make_lab(rtt_ms=2)


def _reason(own: Lab, gateway: Gateway, user: User) -> str:
    """Try to log in, and return why the gateway's log says that it did not work."""
    since = gateway.log.mark()
    assert own.run(own.gateway_argv(gateway, user, "true")).returncode == 255
    match = gateway.log.wait_for(rf'key_refused .* user={user.name} .* reason="(.*)"', since=since)
    return str(match[1])


def _with_local_keys(own: Lab, user: User) -> Gateway:
    """Start a gateway that lets a user in whatever the remote says, so that the session is what fails."""
    return own.start_gateway({"GATEWAY_AUTHORIZED_KEYS_CONTENT": user.key.public})


# Algorithms


@pytest.mark.parametrize("name", ["curve25519-sha256", "curve25519-sha256@libssh.org"])
def test_curve25519_by_either_name(own: Lab, name: str) -> None:
    """A remote with RFC 8731's key exchange alone, by its own name or by the older one, is logged in to."""
    own.remote.set_option(f"KexAlgorithms {name}")
    gateway, since = own.start_gateway(), own.remote.log.mark()
    for user in (own.add_user(), own.add_user()):  # to the second one with foresight
        assert own.run(own.gateway_argv(gateway, user, "echo hi")).stdout == b"hi\n"
        assert own.remote.accepted(user) >= 1
    assert not own.remote.log.matches("Unable to negotiate|error:", since=since)


_ALGORITHMS = {
    "KexAlgorithms": ("sntrup761x25519-sha512@openssh.com", "key exchange method", "curve25519-sha256"),
    "HostKeyAlgorithms": ("ssh-rsa", "host key algorithm", "rsa-sha2-256"),
    "Ciphers": ("chacha20-poly1305@openssh.com", "cipher", "aes128-ctr"),
    "MACs": ("umac-128-etm@openssh.com", "MAC", "hmac-sha2-256"),
}


@pytest.mark.parametrize("keyword", _ALGORITHMS)
@pytest.mark.parametrize("foreseen", [False, True], ids=["first", "foreseen"])
def test_no_algorithm_in_common(own: Lab, keyword: str, *, foreseen: bool) -> None:
    """The log and the user read which kind it is, what the gateway has and what the remote offers; it is tried once."""
    theirs, kind, ours = _ALGORITHMS[keyword]
    before, user = own.add_user(), own.add_user()
    gateway = _with_local_keys(own, user)
    if foreseen:
        own.run(own.gateway_argv(gateway, before, "true", key=user.key.private)).check_returncode()
    if keyword == "HostKeyAlgorithms":
        own.remote.rotate_host_keys(["rsa"])
    own.remote.set_option(f"{keyword} {theirs}")
    since = own.remote.log.mark()

    terminal = own.terminal(own.gateway_argv(gateway, user), columns=250)
    assert terminal.wait_exit() == NoCommonAlgorithmError.status
    said = f"the remote host 192.0.2.2 port 22 and the gateway have no {kind} in common: the gateway has "
    assert terminal.text.startswith(f"gateway: {said}")
    (failed,) = gateway.log.matches('session_failed .* outcome=no_common_algorithm reason="(.*)"')
    assert re.fullmatch(
        rf"{re.escape(said)}[^;]*{re.escape(ours)}[^;]*; the remote offers {re.escape(theirs)}; "
        rf"add one of the gateway's to {keyword} in its sshd_config",
        failed[1],
    )
    # Two when the key was permitted, as it is twice, and one for the session: no try is repeated without foresight.
    assert own.remote.connections(since=since) <= 3


# A second factor


def _second_factor(own: Lab, methods: str, *, auth: str = "pam_permit.so") -> None:
    """Have the remote's sshd want more than a key; ``auth`` is what PAM asks."""
    policy = own.directory / "remote" / "pam-sshd"
    policy.write_text(f"auth required {auth}\naccount required pam_permit.so\nsession required pam_permit.so\n")
    own.remote.room.run(["mount", "--no-mtab", "--bind", str(policy), "/etc/pam.d/sshd"])
    for line in ("UsePAM yes", "KbdInteractiveAuthentication yes", "PasswordAuthentication yes"):
        own.remote.set_option(line)
    own.remote.set_option(f"AuthenticationMethods {methods}")


def test_a_second_factor_without_a_prompt(own: Lab) -> None:
    """Where PAM asks for nothing, as from the gateway's address, shells, commands and sftp work, as by ssh itself."""
    user, gateway = own.add_user(), own.start_gateway()
    _second_factor(own, "publickey,keyboard-interactive:pam")
    for _ in range(2):
        terminal = own.terminal(own.gateway_argv(gateway, user))
        terminal.wait_for(user.prompt)
        terminal.close()
        assert own.run(own.gateway_argv(gateway, user, "echo hi; exit 3")).returncode == 3
        assert own.run(own.gateway_argv(gateway, user, "sftp", options=["-s"])).returncode == 0
    assert len(own.remote.log.matches(rf"Accepted keyboard-interactive/pam for {user.name} ")) == 2


_FACTORS = {
    "password": ("publickey,password", "accepts the gateway's key as USER, and then asks for password, "),
    "prompt": ("publickey,keyboard-interactive", "accepts the gateway's key as USER, and then asks for keyboard-inter"),
    "two": ("publickey,keyboard-interactive,password", "accepts the gateway's key as USER, and then asks for pass"),
    "key": ("publickey,publickey", "accepts the gateway's key as USER, and then asks for publickey, "),
    "first": ("keyboard-interactive,publickey", "takes no public key as USER, but keyboard-interactive; "),
    "none": ("password keyboard-interactive", "takes no public key as USER, but password, keyboard-interactive; "),
}


@pytest.mark.parametrize("case", _FACTORS)
def test_a_second_factor_that_the_gateway_has_not(own: Lab, case: str) -> None:
    """The log, and the user where local keys let in, read what the remote wants, and not that a key is missing."""
    methods, said = _FACTORS[case]
    _second_factor(own, methods, auth="pam_permit.so" if case == "two" else "pam_unix.so")
    user = own.add_user()
    said = said.replace("USER", user.name)
    reason = _reason(own, own.start_gateway(), user)
    assert reason.startswith(f"permission_denied: the remote host {said}")
    assert "AuthenticationMethods" in reason
    assert "add the gateway's public key" not in reason

    terminal = own.terminal(own.gateway_argv(_with_local_keys(own, user), user), columns=250)
    assert terminal.wait_exit() == PermissionDeniedError.status
    assert said in terminal.text
    # What is no answer is a failed login there, by which accounts are locked.
    assert not own.remote.log.matches(f"Failed (password|keyboard-interactive/pam) for {user.name} ")


def test_a_second_factor_with_the_users_own_agent(own: Lab) -> None:
    """With agent pass-through a second key of the agent's serves; what else the remote wants is named."""
    user, gateway = own.add_user(), own.start_gateway({"GATEWAY_SSH_KEY_PATH": None})
    second = own.add_user().key
    own.remote.authorize(user, [user.key.public, second.public])
    argv = own.gateway_argv(gateway, user.name, options=["-A"])
    with own.agent(user.key.private, second.private) as environment:
        _second_factor(own, "publickey,publickey")
        own.terminal(argv, environment=environment).wait_for(user.prompt)
        command = own.gateway_argv(gateway, user.name, "echo hi", options=["-A"])
        assert own.run(command, environment=environment).stdout == b"hi\n"

        own.remote.set_option("AuthenticationMethods publickey,password")
        terminal = own.terminal(argv, environment=environment, columns=200)
        assert terminal.wait_exit() == PermissionDeniedError.status
        assert "the remote host wants password beside or instead of your agent's key" in terminal.text
        refused = own.run(command, environment=environment)
        assert (refused.returncode, b"Permission denied (password)" in refused.stderr) == (255, True)

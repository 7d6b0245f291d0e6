"""User certificates: a ``cert-authority`` line lets in whom it lets in on the remote, with the same restrictions."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from lab.users import KeyPair, make_key
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User


@dataclass(frozen=True)
class Holder:
    """Somebody with a certificate.

    Attributes:
        user: The account on the remote; its authorized_keys have a line for the authority and none for the key.
        authority: Who signed the certificate.
        certificate: The certificate for the user's key.
    """

    user: User
    authority: KeyPair
    certificate: Path

    @property
    def options(self) -> list[str]:
        """What makes ssh offer the certificate, and the key alone after it."""
        return ["-o", f"CertificateFile={self.certificate}"]


def _sign(authority: KeyPair, key: KeyPair, *arguments: str) -> Path:
    command = ["ssh-keygen", "-q", "-s", str(authority.private), "-I", "test", *arguments, f"{key.private}.pub"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return key.private.with_name(f"{key.private.name}-cert.pub")


def _holder(
    lab: Lab, arguments: tuple[str, ...], *, line: str = "cert-authority", kind: str = "ed25519", foreign: bool = False
) -> Holder:
    """Add a user whose authorized_keys trust an authority, and sign a certificate for the user's key.

    Args:
        lab: The lab.
        arguments: ssh-keygen's, with NAME for the user's name.
        line: The options of the authority's line.
        kind: The type of the authority's key.
        foreign: Whether another authority signs than the one that is trusted.
    """
    user = lab.add_user(authorized=[])
    keys = lab.directory / "keys"
    authority = make_key(keys / f"authority-of-{user.name}", kind=kind)
    lab.remote.authorize(user, [f"{line} {authority.public}", lab.gateway_key.public])
    signer = make_key(keys / f"other-authority-of-{user.name}") if foreign else authority
    certificate = _sign(signer, user.key, *(word.replace("NAME", user.name) for word in arguments))
    return Holder(user, signer, certificate)


CASES = {
    "principal": (("-n", "NAME"), "cert-authority", True),
    "one-principal-of-several": (("-n", "other,NAME"), "cert-authority", True),
    "other-principal": (("-n", "other"), "cert-authority", False),
    "within-its-time": (("-n", "NAME", "-V", "-1h:+1h"), "cert-authority", True),
    "expired": (("-n", "NAME", "-V", "-2h:-1h"), "cert-authority", False),
    "not-yet-valid": (("-n", "NAME", "-V", "+1h:+2h"), "cert-authority", False),
    "principals-of-the-line": (("-n", "deploy"), 'cert-authority,principals="deploy,admin"', True),
    "not-among-the-lines-principals": (("-n", "NAME"), 'cert-authority,principals="deploy"', False),
    "expired-line": (("-n", "NAME"), 'cert-authority,expiry-time="20200101"', False),
    "not-an-authority": (("-n", "NAME"), "restrict", False),
    "host-certificate": (("-h", "-n", "NAME"), "cert-authority", False),
    "unknown-critical-option": (("-n", "NAME", "-O", "critical:later@example.org=x"), "cert-authority", False),
    "unknown-extension": (("-n", "NAME", "-O", "extension:later@example.org=x"), "cert-authority", True),
}


@pytest.mark.parametrize(("arguments", "line", "enters"), CASES.values(), ids=CASES)
def test_the_remotes_verdict_holds_here(
    lab: Lab, gateway: Gateway, arguments: tuple[str, ...], line: str, *, enters: bool
) -> None:
    """Who gets in by a certificate gets in here, and nobody else."""
    holder = _holder(lab, arguments, line=line)
    direct = lab.run(lab.direct_ssh_argv(holder.user, "echo in", options=holder.options))
    through = lab.run(lab.gateway_argv(gateway, holder.user, "echo in", options=holder.options))
    assert (direct.stdout == b"in\n") is enters
    assert (through.stdout, through.returncode) == (direct.stdout, direct.returncode)


def test_a_certificate_without_principals(lab: Lab, gateway: Gateway) -> None:
    """OpenSSH before 10.3 lets it in as anyone, later versions refuse it: so does the gateway, and its log says why."""
    holder = _holder(lab, ())
    through = lab.run(lab.gateway_argv(gateway, holder.user, "echo in", options=holder.options))
    assert (through.stdout, through.returncode) == (b"", 255)
    gateway.log.wait_for(rf"key_refused .*user={holder.user.name} .*the certificate has no principals")


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_authorities_of_other_types(lab: Lab, gateway: Gateway, kind: str) -> None:
    """An authority's key may be of any type."""
    holder = _holder(lab, ("-n", "NAME"), kind=kind)
    assert lab.run(lab.gateway_argv(gateway, holder.user, "echo in", options=holder.options)).stdout == b"in\n"


def test_another_authority_is_nobody(lab: Lab, gateway: Gateway) -> None:
    """A certificate that somebody else signed opens nothing, and neither does the authority's own key."""
    holder = _holder(lab, ("-n", "NAME"), foreign=True)
    for argv in (
        lab.gateway_argv(gateway, holder.user, "id", options=holder.options),
        lab.gateway_argv(gateway, holder.user, "id", key=holder.authority.private),
    ):
        done = lab.run(argv)
        assert (done.stdout, done.returncode) == (b"", 255)


def test_the_authoritys_own_key_opens_nothing(lab: Lab, gateway: Gateway) -> None:
    """A cert-authority line is for what the authority signed."""
    holder = _holder(lab, ("-n", "NAME"))
    done = lab.run(lab.gateway_argv(gateway, holder.user, "id", key=holder.authority.private))
    assert (done.stdout, done.returncode) == (b"", 255)


def test_a_shell_over_mosh(lab: Lab, gateway: Gateway, open_terminal: Callable[..., Terminal]) -> None:
    """The holder of a certificate gets a shell like anybody else."""
    holder = _holder(lab, ("-n", "NAME"))
    open_terminal(lab.gateway_argv(gateway, holder.user, options=holder.options)).wait_for(holder.user.prompt)
    assert lab.remote.processes("mosh-server", user=holder.user)


@pytest.mark.parametrize(
    ("options", "request_"), [([], ["id"]), ([], []), (["-tt"], ["id"]), (["-tt"], []), (["-s"], ["sftp"])]
)
def test_a_certificates_command_is_all_that_runs(
    lab: Lab, gateway: Gateway, options: list[str], request_: list[str]
) -> None:
    """``force-command`` rules whatever is asked for, and its exit status comes back."""
    holder = _holder(lab, ("-n", "NAME", "-O", "force-command=echo forced; exit 7"))
    through = lab.run(lab.gateway_argv(gateway, holder.user, *request_, options=[*holder.options, *options]))
    assert (through.stdout.strip(), through.returncode) == (b"forced", 7)


@pytest.mark.parametrize(("line", "says"), [("echo forced", b"forced\n"), ("echo other", b"")])
def test_a_certificates_command_and_its_lines(lab: Lab, gateway: Gateway, line: str, says: bytes) -> None:
    """Where both the line and the certificate have a command they must be the same, as sshd has it."""
    holder = _holder(lab, ("-n", "NAME", "-O", "force-command=echo forced"), line=f'cert-authority,command="{line}"')
    direct = lab.run(lab.direct_ssh_argv(holder.user, "id", options=holder.options))
    through = lab.run(lab.gateway_argv(gateway, holder.user, "id", options=holder.options))
    assert through.stdout == direct.stdout == says
    assert through.returncode == direct.returncode


def test_a_lines_command_rules_its_certificates(lab: Lab, gateway: Gateway) -> None:
    """``command=`` beside ``cert-authority`` holds for all that the authority signed."""
    holder = _holder(lab, ("-n", "NAME"), line='cert-authority,command="echo forced"')
    done = lab.run(lab.gateway_argv(gateway, holder.user, "id", options=holder.options))
    assert done.stdout == b"forced\n"


@pytest.mark.parametrize(("address", "enters"), [("127.0.0.1/32", True), ("192.0.2.0/24", False)])
def test_source_address_is_the_clients_at_the_gateway(
    lab: Lab, gateway: Gateway, address: str, *, enters: bool
) -> None:
    """The gateway's sshd sees the client; the remote would see the gateway."""
    holder = _holder(lab, ("-n", "NAME", "-O", f"source-address={address}"))
    done = lab.run(lab.gateway_argv(gateway, holder.user, "echo in", options=holder.options))
    assert (done.stdout == b"in\n") is enters


def test_a_certificate_without_a_terminal_gets_none(lab: Lab, gateway: Gateway) -> None:
    """``no-pty`` holds, so there is no mosh session; a command still runs."""
    holder = _holder(lab, ("-n", "NAME", "-O", "no-pty"))
    refused = lab.run(lab.gateway_argv(gateway, holder.user, options=[*holder.options, "-tt"]))
    assert (refused.stdout, refused.returncode) == (b"", 255)
    assert lab.remote.processes("mosh-server", user=holder.user) == []
    assert lab.run(lab.gateway_argv(gateway, holder.user, "echo in", options=holder.options)).stdout == b"in\n"


def test_a_revoked_authority_is_refused_after_the_ttl(lab: Lab, start_gateway: Callable[..., Gateway]) -> None:
    """Taking the authority's line out on the remote shuts out all that it signed."""
    gateway, holder = start_gateway({"GATEWAY_CACHE_TTL": "1"}), _holder(lab, ("-n", "NAME"))
    argv = lab.gateway_argv(gateway, holder.user, "echo in", options=holder.options)
    assert lab.run(argv).stdout == b"in\n"
    lab.remote.authorize(holder.user, [lab.gateway_key.public])
    wait_until(lambda: lab.run(argv).returncode == 255, "the certificate is refused")


def test_local_authority(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """A ``cert-authority`` line in the gateway's own list lets in each principal as itself, and as nobody else."""
    authority = make_key(lab.directory / "keys" / f"local-authority-of-{user.name}")
    gateway = start_gateway({"GATEWAY_AUTHORIZED_KEYS_CONTENT": f"cert-authority {authority.public}"})
    certificate = _sign(authority, user.key, "-n", user.name)
    other = lab.add_user()
    options = ["-o", f"CertificateFile={certificate}"]
    assert lab.run(lab.gateway_argv(gateway, user, "id -un", options=options)).stdout.decode() == f"{user.name}\n"
    as_other = lab.gateway_argv(gateway, other.name, "id -un", options=options, key=user.key.private)
    assert lab.run(as_other).returncode == 255

"""The remote's host key: believed only as OpenSSH would believe it, and what people read when it is not."""

from __future__ import annotations

import base64
import random
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from helpers.ssh import known_hosts
from lab.gateway import REMOTE_NAME
from lab.users import make_key
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import KeyPair, User

_CHANGED, _UNKNOWN, _REVOKED = "has changed", "is not known", "is revoked"


class Pinned:
    """A gateway whose users are let in by local keys, so that they get as far as the session, and its known_hosts.

    Args:
        lab: Where the gateway is.
        **settings: More settings of the gateway.
    """

    def __init__(self, lab: Lab, **settings: str) -> None:
        """Start the gateway with an empty known_hosts."""
        self.lab = lab
        count = len(list(lab.directory.glob("pins-*")))
        self.known_hosts = lab.directory / f"pins-{count}"
        self.known_hosts.touch()
        self.key = make_key(lab.directory / "keys" / f"pinned-{count}")
        local = {"REMOTE_KNOWN_HOSTS": str(self.known_hosts), "GATEWAY_AUTHORIZED_KEYS_CONTENT": self.key.public}
        self.gateway = lab.start_gateway({**local, **settings})

    def login(self, user: User | None = None) -> tuple[Terminal, User]:
        """Open a terminal, wide enough for a sentence with its remedy, as a user who has no warm connection."""
        user = user or self.lab.add_user()
        argv = self.lab.gateway_argv(self.gateway, user, key=self.key.private)
        return self.lab.terminal(argv, columns=400), user

    def is_believed(self) -> bool:
        """Log in as somebody new: whether there is a prompt, or else exit status 76."""
        terminal, user = self.login()
        try:
            # Not what begins with "gateway: ": a slow login says so that it is still reaching the remote.
            terminal.wait_until(lambda its: user.prompt in its.text or "Connection to" in its.text, "it answers")
            if user.prompt in terminal.text:
                terminal.type("exit\r")
                assert terminal.wait_exit() == 0
                return True
            assert terminal.wait_exit() == 76
            return False
        finally:
            terminal.close()


@pytest.fixture(scope="module")
def pinned(shared_lab: Lab) -> Iterator[Pinned]:
    """One such gateway for all tests that only change its known_hosts."""
    pinned = Pinned(shared_lab)
    yield pinned
    pinned.gateway.close()


def _key(lab: Lab, kind: str) -> str:
    """Return the remote's host key of a type, as known_hosts has it."""
    return next(" ".join(key.public.split()[:2]) for key in lab.remote.host_keys if kind in key.public.split()[0])


def _hashed(lab: Lab, text: str) -> str:
    """Hash the host names of a known_hosts file, with OpenSSH's own tool."""
    path = lab.directory / "to-be-hashed"
    path.write_text(text)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)
    return path.read_text()


# What known_hosts may say, with the remote's keys as {ed} and {ecdsa} and a stranger's as {other}

_BELIEVED = {
    "plain": f"{FAR_IPV4} {{ed}}\n{FAR_IPV4} {{ecdsa}}\n",
    "only ecdsa": f"{FAR_IPV4} {{ecdsa}}\n",
    "only ed25519": f"{FAR_IPV4} {{ed}}\n",
    "among strangers": f"{FAR_IPV4} {{other}}\n{FAR_IPV4} {{ed}}\n",
    "in a list": f"localhost,{FAR_IPV4},elsewhere {{ed}} a comment\n",
    "wildcard": "192.0.2.* {ed}\n",
    "one character": "192.0.?.2 {ed}\n",
    "anything": "* {ed}\n",
    "negated elsewhere": "*,!192.0.2.3 {ed}\n",
    "comments and blanks": f"# {FAR_IPV4} {{other}}\n\n   \n \t {FAR_IPV4}\t{{ed}}\n",
    "another key revoked": f"@revoked * {{other}}\n{FAR_IPV4} {{ed}}\n",
    "no newline at the end": f"{FAR_IPV4} {{ed}}",
}
_REFUSED = {
    "empty": ("", _UNKNOWN),
    "another host": ("192.0.2.3 {ed}\n", _UNKNOWN),
    "a longer name": (f"{FAR_IPV4}2 {{ed}}\nx{FAR_IPV4} {{ed}}\n", _UNKNOWN),
    "another port": (f"[{FAR_IPV4}]:2222 {{ed}}\n", _UNKNOWN),
    "another key": (f"{FAR_IPV4} {{other}}\n", _CHANGED),
    "negated": (f"192.0.2.*,!{FAR_IPV4} {{ed}}\n", _UNKNOWN),
    "negated first": ("!192.0.*,* {ed}\n", _UNKNOWN),
    "commented out": (f"#{FAR_IPV4} {{ed}}\n", _UNKNOWN),
    "torn in two": (f"{FAR_IPV4}\n{{ed}}\n", _UNKNOWN),
    "revoked": (f"@revoked {FAR_IPV4} {{ed}}\n{FAR_IPV4} {{ed}}\n", _REVOKED),
    "revoked for all": (f"{FAR_IPV4} {{ed}}\n@revoked * {{ed}}\n", _REVOKED),
    "only revoked": (f"@revoked {FAR_IPV4} {{ed}}\n@revoked {FAR_IPV4} {{ecdsa}}\n", _REVOKED),
    "an authority": (f"@cert-authority {FAR_IPV4} {{ed}}\n@cert-authority {FAR_IPV4} {{ecdsa}}\n", _UNKNOWN),
    "another marker": (f"@trusted {FAR_IPV4} {{ed}}\n", _UNKNOWN),
}


def _filled(lab: Lab, text: str) -> str:
    """Put keys into one of the texts above."""
    other = lab.gateway_key.public.split()
    return text.format(ed=_key(lab, "ed25519"), ecdsa=_key(lab, "ecdsa"), other=" ".join(other[:2]))


@pytest.mark.parametrize("text", _BELIEVED.values(), ids=_BELIEVED.keys())
@pytest.mark.parametrize("hashed", [False, True], ids=["plain", "hashed"])
def test_known_key_is_believed(lab: Lab, pinned: Pinned, text: str, *, hashed: bool) -> None:
    """A host key that known_hosts has for the remote, by name, pattern or hash, lets a session begin at once."""
    content = _filled(lab, text)
    pinned.known_hosts.write_text(_hashed(lab, content) if hashed else content)

    assert pinned.is_believed()


@pytest.mark.parametrize(("text", "reason"), _REFUSED.values(), ids=_REFUSED.keys())
def test_any_other_key_is_refused(lab: Lab, pinned: Pinned, text: str, reason: str) -> None:
    """Any other host key ends the session with status 76 and one sentence: what is wrong, and the fingerprint shown."""
    pinned.known_hosts.write_text(_filled(lab, text))
    terminal, user = pinned.login()

    assert terminal.wait_exit() == 76
    (sentence,) = [line for line in terminal.lines if line.startswith("gateway: ")]
    fingerprints = {known_hosts.fingerprint(_blob(key)) for key in lab.remote.host_keys}
    assert reason in sentence
    assert set(re.findall(r"SHA256:[A-Za-z0-9+/]{43}", sentence)) <= fingerprints
    assert re.search(r"SHA256:[A-Za-z0-9+/]{43}", sentence)
    assert str(pinned.known_hosts) in sentence
    assert lab.remote.accepted(user) == 0


def _blob(key: KeyPair) -> bytes:
    """Return a public key in wire format."""
    return base64.b64decode(key.public.split()[1])


def test_any_path_is_the_same_to_ssh(lab: Lab, user: User, start_gateway: Callable[..., Gateway]) -> None:
    """What goes over ssh finds the remote's key where mosh sessions do, whatever characters REMOTE_KNOWN_HOSTS has."""
    path = lab.directory / 'known hosts #1 of 100%h, "his" o\'ne\\'
    path.write_text(lab.known_hosts.read_text())
    gateway = start_gateway({"REMOTE_KNOWN_HOSTS": str(path)})
    done = lab.run(lab.gateway_argv(gateway, user, "echo here"))

    assert done.stdout == b"here\n", done.stderr


def test_missing_file_is_no_trust(lab: Lab, pinned: Pinned) -> None:
    """Without a known_hosts nobody gets in, and with it again everybody does."""
    content = _filled(lab, _BELIEVED["plain"])
    pinned.known_hosts.unlink()
    absent = pinned.is_believed()
    pinned.known_hosts.write_text(content)
    present = pinned.is_believed()

    assert (absent, present) == (False, True)


def test_unreadable_file_is_no_trust(lab: Lab, pinned: Pinned) -> None:
    """A known_hosts that the broker may not read lets nobody in, and the sentence says so."""
    pinned.known_hosts.unlink()  # its successor has not been read yet
    pinned.known_hosts.write_text(_filled(lab, _BELIEVED["plain"]))
    pinned.known_hosts.chmod(0o600)
    terminal, _ = pinned.login()
    status = terminal.wait_exit()
    pinned.known_hosts.chmod(0o644)

    assert status == 76
    assert f"chmod 0644 {pinned.known_hosts}" in terminal.text
    assert pinned.is_believed()


def test_refusal_reaches_the_log_without_local_keys(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User
) -> None:
    """Where keys come from the remote, an unknown host key refuses the login; the log has fingerprint and remedy."""
    empty = lab.directory / f"empty-for-{user.name}"
    empty.touch()
    gateway = start_gateway({"REMOTE_KNOWN_HOSTS": str(empty)})

    done = lab.run(lab.gateway_argv(gateway, user, options=["-tt"]))

    assert (done.returncode, b"Permission denied (publickey)" in done.stderr) == (255, True)
    gateway.log.wait_for(rf"key_refused .*user={user.name} .*host_key: .*SHA256:.* ssh-keyscan .* >> {empty}")


# Remedies


def _remedy(lab: Lab, terminal: Terminal) -> None:
    """Run what the terminal says, where the gateway is."""
    match = re.search(r"on the gateway: (ssh-key.*)$", terminal.text, re.MULTILINE)
    assert match, terminal.framed()
    done = lab.run(["sh", "-c", match[1].strip()])
    assert done.returncode == 0, done


def test_remedy_for_an_unknown_key_works(lab: Lab, pinned: Pinned) -> None:
    """The command that an unknown host key's sentence gives pins the key, without a restart."""
    pinned.known_hosts.write_text("")
    terminal, _ = pinned.login()
    assert terminal.wait_exit() == 76

    _remedy(lab, terminal)

    assert pinned.is_believed()


def test_remedy_for_a_changed_key_works(make_lab: Callable[..., Lab]) -> None:
    """After the remote's keys were changed, the sentence says so, and its command mends it."""
    lab = make_lab(rtt_ms=2)
    pinned = Pinned(lab)
    pinned.known_hosts.write_text(lab.known_hosts.read_text())
    assert pinned.is_believed()

    lab.remote.rotate_host_keys()
    terminal, _ = pinned.login()
    assert terminal.wait_exit() == 76
    assert _CHANGED in terminal.text
    _remedy(lab, terminal)

    assert pinned.is_believed()


def test_another_port_has_entries_of_its_own(make_lab: Callable[..., Lab]) -> None:
    """With REMOTE_PORT the entry is ``[host]:port``, else one for the name alone counts, and remedies fit."""
    lab = make_lab(rtt_ms=2)
    config, log = lab.directory / "remote/sshd_config", lab.directory / "remote/second.log"
    lab.remote.room.run(["/usr/sbin/sshd", "-f", str(config), "-p", "2200", "-E", str(log)])
    pinned = Pinned(lab, REMOTE_PORT="2200")

    believed = {}
    for hosts in (f"[{FAR_IPV4}]:2200", FAR_IPV4, f"[{FAR_IPV4}]:*", "*", f"[{FAR_IPV4}]:22", f"{FAR_IPV4}:2200"):
        pinned.known_hosts.write_text(f"{hosts} {_key(lab, 'ed25519')}\n")
        believed[hosts] = pinned.is_believed()
    terminal, _ = pinned.login()
    terminal.wait_exit()
    _remedy(lab, terminal)

    assert list(believed.values()) == [True, True, True, True, False, False], believed
    assert f"[{FAR_IPV4}]:2200 is not known" in terminal.text
    assert pinned.is_believed()


def test_name_is_looked_up_as_written(make_lab: Callable[..., Lab]) -> None:
    """REMOTE_HOST is looked up as the operator wrote it, in whatever case, and not by its address."""
    lab = make_lab(rtt_ms=2)
    pinned = Pinned(lab, REMOTE_HOST=REMOTE_NAME.title())

    pinned.known_hosts.write_text(lab.remote.known_hosts(FAR_IPV4))
    by_address = pinned.is_believed()
    pinned.known_hosts.write_text(lab.remote.known_hosts(REMOTE_NAME.upper()))
    by_name = pinned.is_believed()

    assert (by_address, by_name) == (False, True)


def test_check_can_be_turned_off(make_lab: Callable[..., Lab]) -> None:
    """REMOTE_IGNORE_HOST_KEY=true lets everybody in whatever the remote shows, and each connection is a warning."""
    lab = make_lab(rtt_ms=2)
    pinned = Pinned(lab, REMOTE_IGNORE_HOST_KEY="true")
    pinned.known_hosts.write_text(f"{FAR_IPV4} {' '.join(lab.gateway_key.public.split()[:2])}\n")
    started = pinned.gateway.log.mark()

    assert len(pinned.gateway.log.matches(r"warning .*REMOTE_IGNORE_HOST_KEY")) >= 1
    assert pinned.is_believed()
    assert pinned.is_believed()
    assert len(pinned.gateway.log.matches(r"warning host_key_ignored .*SHA256:", since=started)) == 2


# Matching, compared with OpenSSH's own


_NAMES = ("remote.example", "192.0.2.2", "2001:db8::2", "[remote.example]:2200", "[192.0.2.2]:2200")
_PATTERNS = (
    *_NAMES,
    "Remote.EXAMPLE",
    "*.example",
    "*.EXAMPLE",
    "remote.exampl?",
    "192.0.2.*",
    "192.0.?.2",
    "[*]:2200",
    "[remote.*]:*",
    "*",
    "**",
    "?*",
    "2001:db8:*",
    "!remote.example",
    "!192.0.*",
    "!*",
    "!",
    "",
    "remote",
    "other.example",
    "remote.example.",
    "|1|",
    "|1|AAAA|AAAA",
    "|2|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg=",
)
_BLANKS = (" ", "  ", "\t", " \t ")
_MARKERS = ("", "", "", "", "@revoked", "@cert-authority", "@trusted", "@REVOKED", "@", "#")


def _generated_line(its: random.Random, keys: list[str], hashes: list[str]) -> str:
    """Write one line of a known_hosts file, sane or not."""
    blank = its.choice(_BLANKS)
    hosts = ",".join(its.choices(_PATTERNS, k=its.randint(1, 3))) if its.random() < 0.75 else its.choice(hashes)
    key_type, blob = its.choice(keys).split()
    words = [its.choice(_MARKERS), hosts, key_type, blob, its.choice(("", "", "a comment", "# x"))]
    damage = its.random()
    if damage < 0.05:
        words[3] = words[3][: its.randint(0, 40)]
    elif damage < 0.08:
        words = words[: its.randint(0, 3)]
    lead = its.choice(("", "", "", " ", "\t", "  \t"))
    return lead + blank.join(word for word in words if word) + its.choice(("", "", "", " ", "\t", "\r"))


def _openssh_finds(path: Path, name: str) -> set[tuple[str, str]]:
    """Ask ``ssh-keygen -F`` which keys a file has for a host, each with its marker."""
    done = subprocess.run(["ssh-keygen", "-F", name, "-f", str(path)], check=False, capture_output=True, text=True)
    assert done.returncode in {0, 1}, done.stderr
    found = set()
    marker = ""
    for line in done.stdout.splitlines():
        if match := re.fullmatch(r"# Host .* found: line \d+ ?(.*)", line):
            marker = {"": "", "CA": "@cert-authority", "REVOKED": "@revoked"}[match[1].strip()]
        elif words := [word for word in line.split() if not word.startswith("@")]:
            found.add((marker, words[2]))
    return found


def _we_find(path: Path, name: str) -> set[tuple[str, str]]:
    """Ask the broker's own reader the same; of authorities it only keeps the number."""
    keys = known_hosts.find(path.read_bytes(), name)
    trusted = {("", base64.b64encode(blob).decode()) for _, blob in keys.trusted}
    return trusted | {("@revoked", base64.b64encode(blob).decode()) for blob in keys.revoked}


def test_matching_agrees_with_openssh(lab: Lab, tmp_path: Path) -> None:
    """In 300 files of patterns, hashes, markers and damage, we trust what ``ssh-keygen -F`` finds, and nothing else.

    It also finds keys that are not whole, which ssh(1) then cannot read, so only whole ones count. Of what is
    revoked we may know more: for OpenSSH, a blank anywhere makes ``@revoked`` and a tab no marker.
    """
    its = random.Random(2)  # noqa: S311 - the same files every time
    keys = [
        " ".join(make_key(tmp_path / f"k{n}", kind=kind).public.split()[:2])
        for n, kind in enumerate(("ed25519", "ecdsa", "ed25519"))
    ]
    hashes = [line.split()[0] for line in _hashed(lab, "".join(f"{name} {keys[0]}\n" for name in _NAMES)).splitlines()]
    path = tmp_path / "known_hosts"
    whole = {key.split()[1] for key in keys}
    differences = []
    for _ in range(300):
        path.write_text("\n".join(_generated_line(its, keys, hashes) for _ in range(its.randint(1, 6))) + "\n")
        name = its.choice(_NAMES)
        theirs = {(marker, key) for marker, key in _openssh_finds(path, name) if key in whole}
        ours = {(marker, key) for marker, key in _we_find(path, name) if key in whole}
        trusted = [{key for marker, key in found if not marker} for found in (ours, theirs)]
        revoked = [{key for marker, key in found if marker == "@revoked"} for found in (ours, theirs)]
        if trusted[0] != trusted[1] or not revoked[0] >= revoked[1]:
            differences.append(f"{name} in\n{path.read_text()}: we find {ours}, OpenSSH {theirs}")

    assert not differences, differences[0]

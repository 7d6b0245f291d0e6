"""Which host keys the remote may show, compared with what OpenSSH itself finds in the same file."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers.protocol.errors import HostKeyError
from helpers.ssh import known_hosts
from helpers.ssh.known_hosts import MAX_FILE_BYTES, HostKeys, KnownHosts, find, fingerprint, matches


def _key(seed: int) -> bytes:
    """Make the blob of an ed25519 key (RFC 8709, section 4)."""
    return b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + hashlib.sha256(bytes([seed])).digest()


_KEYS = [_key(seed) for seed in range(4)]
_TEXTS = [f"ssh-ed25519 {base64.b64encode(key).decode()}" for key in _KEYS]
_NAME = "remote.example"


def _hashed(name: str, salt: bytes = b"0123456789abcdefghij") -> str:
    digest = hmac.digest(salt, name.encode(), "sha1")
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a known_hosts that is not there yet."""
    return tmp_path / "known_hosts"


@pytest.mark.parametrize(
    ("hosts", "name"),
    [
        ("remote.example", _NAME),
        ("REMOTE.Example", _NAME),
        ("other,remote.example", _NAME),
        ("*.example", _NAME),
        ("*", _NAME),
        ("r?mote.example", _NAME),
        ("*,!other.example", _NAME),
        ("[remote.example]:2222", "[remote.example]:2222"),
        ("[*.example]:2222", "[remote.example]:2222"),
        ("2001:db8::1", "2001:db8::1"),
        (_hashed(_NAME), _NAME),
        (_hashed("[remote.example]:2222"), "[remote.example]:2222"),
    ],
)
def test_names_that_match(hosts: str, name: str) -> None:
    """Plain, in a list, by pattern, hashed, with a port; upper case does not count."""
    assert matches(hosts, name)


@pytest.mark.parametrize(
    ("hosts", "name"),
    [
        ("", _NAME),
        ("remote.exampl", _NAME),
        ("remote.example.org", _NAME),
        ("remoteXexample", _NAME),
        ("[remote.example]:2222", _NAME),
        ("remote.example", "[remote.example]:2222"),
        ("*,!remote.example", _NAME),
        ("!remote.example,*", _NAME),
        ("!other.example", _NAME),
        ("?", _NAME),
        (_hashed("other.example"), _NAME),
        (_hashed(_NAME).replace("|1|", "|2|"), _NAME),
        (_hashed(_NAME) + "|", _NAME),
        ("|1|" + _hashed(_NAME)[3:].replace("=", ""), _NAME),
        ("|1||", _NAME),
        ("|", _NAME),
        ("|1|é|é", _NAME),
    ],
)
def test_names_that_do_not(hosts: str, name: str) -> None:
    """Half a name, another port, a name that is ruled out, hashes of others and hashes that are none."""
    assert not matches(hosts, name)


def test_what_a_file_says_of_a_host() -> None:
    """Keys, revoked keys and authorities of the host are told apart; others' lines and broken ones are passed over."""
    content = "\n".join(
        [
            "# a comment",
            "",
            f"{_NAME} {_TEXTS[0]} a comment",
            f"other.example {_TEXTS[1]}",
            f"@revoked * {_TEXTS[2]}",
            f"@cert-authority *.example {_TEXTS[3]}",
            f"@unknown {_NAME} {_TEXTS[1]}",
            f"{_NAME} ssh-ed25519",
            f"{_NAME} ssh-ed25519 !!!",
            f"\t{_hashed(_NAME)} {_TEXTS[1]}\r",
        ]
    )
    found = find(content.encode(), _NAME)
    assert found.trusted == (("ssh-ed25519", _KEYS[0]), ("ssh-ed25519", _KEYS[1]))
    assert (found.revoked, found.authorities, found.key_types) == (frozenset({_KEYS[2]}), 1, ["ssh-ed25519"])


_HOSTS = st.sampled_from(
    [
        _NAME,
        "*",
        "*.example",
        "other",
        f"other,{_NAME}",
        f"*,!{_NAME}",
        "!other,*",
        "",
        _hashed(_NAME),
        _hashed("other"),
        "|1|x|y",
    ]
)
_LINE = st.builds(
    lambda lead, marker, hosts, gap, key, tail: f"{lead}{marker}{hosts}{gap}{key}{tail}",
    st.sampled_from(["", "", " ", "\t", "#", "\v"]),
    st.sampled_from(["", "", "", "@revoked ", "@cert-authority ", "@revoked\t", "@other ", "@revoked"]),
    _HOSTS,
    st.sampled_from([" ", "\t", "  ", " \t ", "\v", "\f", "\xa0", ""]),
    st.sampled_from(
        [*_TEXTS, "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-rsa AAAA", f"ssh-rsa {_TEXTS[0].split()[1]}", ""]
    ),
    st.sampled_from(["", " comment", "\r", "\0", " \x1b", "\x85", "=", ","]),
)


def _found_by_openssh(path: Path) -> list[tuple[str, str]]:
    argv = ["ssh-keygen", "-F", _NAME, "-l", "-f", os.fspath(path)]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=30)
    found, marker = [], ""
    for line in done.stdout.decode("utf-8", "replace").split("\n"):
        if line.startswith("# Host"):
            marker = line.rsplit(" ", 1)[1] if line.endswith(("REVOKED", "CA")) else ""
        elif "SHA256:" in line:
            found.append((marker, "SHA256:" + line.split("SHA256:")[1][:43]))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(lines=[f"{_NAME} {text}" for text in _TEXTS])
@example(lines=[f"{_NAME} {_TEXTS[0]}\x85"])
@example(lines=[f"@revoked {_NAME} {_TEXTS[0]}", f"* {_TEXTS[0]}"])
@example(lines=[f"{_NAME} {_TEXTS[0]}", f"@revoked {_NAME} {_TEXTS[0]}\0"])
@given(lines=st.lists(_LINE, max_size=5))
def test_nothing_is_trusted_that_openssh_does_not_trust(file: Path, lines: list[str]) -> None:
    """Each key that we trust ssh-keygen finds for the host too, and each that it has as revoked, we have."""
    content = "\n".join(lines).encode()
    file.write_bytes(content)
    found, by_openssh = find(content, _NAME), _found_by_openssh(file)
    ours = {fingerprint(blob) for _, blob in found.trusted}
    theirs = {key for marker, key in by_openssh if not marker}
    assert ours & {fingerprint(key) for key in _KEYS} <= theirs
    assert {key for marker, key in by_openssh if marker == "REVOKED"} <= {fingerprint(blob) for blob in found.revoked}


@given(st.binary(max_size=200) | st.text(st.sampled_from(f"|1@#*?!, \n{_NAME}="), max_size=80).map(str.encode))
def test_any_bytes_are_a_file(content: bytes) -> None:
    """A file of anything raises nothing."""
    assert isinstance(find(content, _NAME), HostKeys)


def test_a_fingerprint_is_openssh_s(file: Path) -> None:
    """The fingerprint in our messages is what ssh-keygen -l shows."""
    file.write_text(_TEXTS[0] + "\n")
    done = subprocess.run(["ssh-keygen", "-l", "-f", os.fspath(file)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == fingerprint(_KEYS[0])


def test_a_known_key_is_accepted(file: Path) -> None:
    """A host may have several keys, and shows one of them; a change of the file counts at once."""
    file.write_text(f"{_NAME} {_TEXTS[0]}\n{_NAME} {_TEXTS[1]}\n")
    hosts = KnownHosts(file, "Remote.Example", 22)
    for key in _KEYS[:2]:
        hosts.verify("ssh-ed25519", key)
    file.write_text(
        f"{_NAME} {_TEXTS[2]}\n# longer than before, so that it is seen whatever the clock says {'x' * 200}\n"
    )
    hosts.verify("ssh-ed25519", _KEYS[2])
    with pytest.raises(HostKeyError, match="has changed"):
        hosts.verify("ssh-ed25519", _KEYS[0])


def test_an_unknown_host(file: Path) -> None:
    """No file, an empty one and one of other hosts know nothing; the message has the fingerprint and what to do."""
    hosts = KnownHosts(file, _NAME, 2222)
    for content in (None, "", f"other {_TEXTS[0]}\n"):
        if content is not None:
            file.write_text(content)
        with pytest.raises(HostKeyError, match="is not known") as caught:
            hosts.verify("ssh-ed25519", _KEYS[0])
        assert fingerprint(_KEYS[0]) in caught.value.message
        assert f"ssh-keyscan -p 2222 {_NAME} >> {file}" in caught.value.message


def test_a_changed_key(file: Path) -> None:
    """Another key than the known one is a change, and the message names the command that takes the old one out."""
    file.write_text(f"[{_NAME}]:2222 {_TEXTS[0]}\n")
    with pytest.raises(HostKeyError, match="has changed") as caught:
        KnownHosts(file, _NAME, 2222).verify("ssh-ed25519", _KEYS[1])
    assert f"ssh-keygen -R '[{_NAME}]:2222' -f {file}" in caught.value.message
    assert fingerprint(_KEYS[1]) in caught.value.message


@pytest.mark.parametrize("hosts", [_NAME, "*", _hashed(_NAME)])
def test_a_revoked_key_is_never_accepted(hosts: str, file: Path) -> None:
    """A revoked key is refused, trusted elsewhere in the file or not."""
    file.write_text(f"{_NAME} {_TEXTS[0]}\n@revoked {hosts} {_TEXTS[0]}\n")
    with pytest.raises(HostKeyError, match="revoked"):
        KnownHosts(file, _NAME, 22).verify("ssh-ed25519", _KEYS[0])


def test_an_authority_is_no_key(file: Path) -> None:
    """A certificate authority's key is not the host's, and the message says that it is not used."""
    file.write_text(f"@cert-authority * {_TEXTS[0]}\n")
    with pytest.raises(HostKeyError, match="@cert-authority"):
        KnownHosts(file, _NAME, 22).verify("ssh-ed25519", _KEYS[0])


def test_a_name_without_its_port_counts_where_the_port_is_not_listed(file: Path) -> None:
    """As in ssh(1): the entry with the port rules, else the bare name's; ssh is told which one it was."""
    hosts = KnownHosts(file, _NAME, 2222)
    file.write_text(f"{_NAME} {_TEXTS[0]}\n")
    hosts.verify("ssh-ed25519", _KEYS[0])
    assert hosts.known_name == _NAME
    file.write_text(f"{_NAME} {_TEXTS[0]}\n[{_NAME}]:2222 {_TEXTS[1]}\n")
    with pytest.raises(HostKeyError, match="changed"):
        hosts.verify("ssh-ed25519", _KEYS[0])
    assert hosts.known_name == f"[{_NAME}]:2222"


def test_what_counted_counts_until_a_changed_file_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that begins while a connection reads the file anew is told no name that no entry has."""
    hosts = KnownHosts(file, _NAME, 2222)
    file.write_text(f"{_NAME} {_TEXTS[0]}\n")
    assert hosts.known_name == _NAME
    meanwhile = []

    def find_slowly(content: bytes, name: str) -> HostKeys:
        with monkeypatch.context() as patch:
            patch.setattr(hosts, "keys", lambda: None)  # as for who began when the file was the old one
            meanwhile.append(hosts.known_name)
        return find(content, name)

    monkeypatch.setattr(known_hosts, "find", find_slowly)
    file.write_text(f"{_NAME} {_TEXTS[0]}\n{_NAME} {_TEXTS[1]}\n")
    assert len(hosts.keys().trusted) == 2
    assert meanwhile == [_NAME] * 2


def test_another_ports_entry_does_not_count(file: Path) -> None:
    """A key that is known for a port is not known for port 22."""
    file.write_text(f"[{_NAME}]:2222 {_TEXTS[0]}\n")
    with pytest.raises(HostKeyError, match="not known"):
        KnownHosts(file, _NAME, 22).verify("ssh-ed25519", _KEYS[0])


def test_a_file_that_is_gone_again_trusts_nothing(file: Path) -> None:
    """What was read from a file that is not there any more is forgotten."""
    file.write_text(f"{_NAME} {_TEXTS[0]}\n")
    hosts = KnownHosts(file, _NAME, 22)
    hosts.verify("ssh-ed25519", _KEYS[0])
    file.unlink()
    with pytest.raises(HostKeyError, match="not known"):
        hosts.verify("ssh-ed25519", _KEYS[0])


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A directory, a path through a file and a file without end let nobody on, and say which file it is."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for path in (tmp_path, large / "below", large):
        with pytest.raises(HostKeyError, match="cannot read"):
            KnownHosts(path, _NAME, 22).keys()

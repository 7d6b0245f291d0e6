"""The filter of key lines: what it prints for an offered key, what it leaves out, and what ends the file.

That OpenSSH agrees is what tests/system/test_keyline_differential.py shows; here is what can be said without sshd.
"""

from __future__ import annotations

import base64
import contextlib
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.broker.keys.key_index import MAX_CONTENT_BYTES, MAX_PERMITTED_LINES, KeyIndex
from helpers.protocol.errors import ProtocolError
from helpers.ssh.authorized_keys import (
    CARRIER,
    EMPTY_COMMAND,
    MAX_COMMAND_BYTES,
    MAX_OFFERED_CHARS,
    OfferedKey,
    decode_command,
    encode_command,
    parse_offered_key,
)
from helpers.ssh.certificate import canonical_key
from helpers.ssh.wire import MPINT_MAX_BYTES


def string(content: bytes) -> bytes:
    """Write an SSH string."""
    return len(content).to_bytes(4, "big") + content


def strings(*contents: bytes) -> bytes:
    """Write SSH strings one after the other."""
    return b"".join(map(string, contents))


def in_base64(blob: bytes) -> str:
    """Write a blob as sshd's %k."""
    return base64.b64encode(blob).decode()


ED25519 = strings(b"ssh-ed25519", b"k" * 32)
OTHER = strings(b"ssh-ed25519", b"o" * 32)
AUTHORITY = strings(b"ssh-ed25519", b"c" * 32)
RSA = strings(b"ssh-rsa", b"\x01\x00\x01", b"\0" + b"\xc3" * 256)
POINT = b"\x04" + b"p" * 64
BLOBS = {
    "ssh-ed25519": ED25519,
    "ssh-rsa": RSA,
    "ecdsa-sha2-nistp256": strings(b"ecdsa-sha2-nistp256", b"nistp256", POINT),
    "ecdsa-sha2-nistp384": strings(b"ecdsa-sha2-nistp384", b"nistp384", b"\x04" + b"p" * 96),
    "ecdsa-sha2-nistp521": strings(b"ecdsa-sha2-nistp521", b"nistp521", b"\x04" + b"p" * 132),
    "sk-ssh-ed25519@openssh.com": strings(b"sk-ssh-ed25519@openssh.com", b"k" * 32, b"ssh:"),
    "sk-ecdsa-sha2-nistp256@openssh.com": strings(b"sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", POINT, b"ssh:"),
}
KEY = f"ssh-ed25519 {in_base64(ED25519)}".encode()
AUTHORITY_KEY = f"ssh-ed25519 {in_base64(AUTHORITY)}".encode()
OTHER_KEY = f"ssh-ed25519 {in_base64(OTHER)}".encode()
OFFERED = parse_offered_key("ssh-ed25519", in_base64(ED25519))


def certificate_blob(
    plain: bytes = ED25519,
    *,
    signer: bytes = AUTHORITY,
    forced: tuple[bytes, ...] = (),
    critical: bytes = b"",
    kind: int = 1,
    principals: tuple[bytes, ...] = (b"alice",),
) -> tuple[str, bytes]:
    """Make a certificate (its signature is nonsense, which is for sshd to find) and name its type."""
    name = plain[4 : 4 + plain[3]].decode()
    key_type = f"{name.removesuffix('@openssh.com')}-cert-v01@openssh.com"
    options = critical + b"".join(strings(b"force-command", string(command)) for command in forced)
    blob = strings(key_type.encode(), b"nonce") + plain[4 + plain[3] :] + bytes(8) + kind.to_bytes(4, "big")
    blob += strings(b"id", strings(*principals)) + bytes(8) + b"\xff" * 8
    blob += strings(options, strings(b"permit-pty", b""), b"", signer, b"signature")
    return key_type, blob


def certificate(**parts: object) -> OfferedKey:
    """Offer a certificate."""
    key_type, blob = certificate_blob(**parts)  # type: ignore[arg-type]
    return parse_offered_key(key_type, in_base64(blob))


def carrier(command: bytes) -> bytes:
    """Write the option that carries a command."""
    return f'environment="{CARRIER}={encode_command(command)}"'.encode()


def permitted_lines(content: bytes, offered: OfferedKey) -> list[bytes]:
    """Read a file, and offer a key against it."""
    return KeyIndex(content).permitted_lines(offered)


class TestOfferedKey:
    """What sshd may ask about."""

    @pytest.mark.parametrize("key_type", BLOBS)
    def test_every_plain_type_is_read(self, key_type: str) -> None:
        """Each of the seven types of plain keys is a key that can be offered."""
        assert parse_offered_key(key_type, in_base64(BLOBS[key_type])) == OfferedKey(key_type, BLOBS[key_type])

    @pytest.mark.parametrize("plain", BLOBS.values(), ids=BLOBS)
    def test_every_certificate_type_is_read(self, plain: bytes) -> None:
        """A certificate of each type tells who signed it, and that it forces nothing."""
        found = certificate(plain=plain).certificate
        assert found is not None
        assert (found.signature_key, found.forced_command) == (AUTHORITY, None)

    @pytest.mark.parametrize("forced", [b"ls", b"", b"a\nb", b"\xff", b"x" * 70_000])
    def test_a_forced_command_is_read(self, forced: bytes) -> None:
        """A certificate's force-command is found behind other options, whatever bytes it has."""
        found = certificate(forced=(forced,), critical=strings(b"source-address", string(b"::1/128"))).certificate
        assert found is not None
        assert found.forced_command == forced

    @pytest.mark.parametrize("principals", [(), (b"",), (b"alice", b""), (b"alice,bob",), (b"alice", b"x,")])
    def test_principals_on_which_versions_differ_are_refused(self, principals: tuple[bytes, ...]) -> None:
        """To OpenSSH before 10.3 none is everybody, and a comma makes two of one: such certificates open nothing."""
        with pytest.raises(ProtocolError, match="principal"):
            certificate(principals=principals)

    def test_an_extension_forces_nothing(self) -> None:
        """OpenSSH ignores force-command among the extensions, so it is not carried either."""
        key_type, blob = certificate_blob()
        blob = blob.replace(strings(strings(b"permit-pty", b"")), strings(strings(b"force-command", string(b"ls"))))
        found = parse_offered_key(key_type, in_base64(blob)).certificate
        assert found is not None
        assert found.forced_command is None

    @pytest.mark.parametrize(
        ("key_type", "text"),
        [
            ("", ""),
            ("ssh-ed25519", ""),
            ("ssh-ed25519", "!"),
            ("ssh-ed25519", in_base64(ED25519)[:-4]),
            ("ssh-ed25519", in_base64(ED25519) + "AAAA"),
            ("ssh-ed25519", in_base64(ED25519) + "\n"),
            ("ssh-ed25519", " " + in_base64(ED25519)),
            ("ssh-ed25519", in_base64(ED25519) + "é"),
            ("ssh-ed25519", in_base64(ED25519) + "\udcff"),
            ("ssh-ed25519", in_base64(RSA)),
            ("ssh-rsa", in_base64(ED25519)),
            ("SSH-ED25519", in_base64(ED25519)),
            ("rsa-sha2-256", in_base64(RSA)),
            ("ssh-dss", in_base64(strings(b"ssh-dss", b"p", b"q", b"g", b"y"))),
            ("ssh-ed25519-cert-v01@openssh.com", in_base64(ED25519)),
            ("ssh-ed25519", in_base64(strings(b"ssh-ed25519", b"k" * 31))),
            ("ssh-ed25519", in_base64(strings(b"ED25519", b"k" * 32))),
            ("ssh-ed25519", in_base64(strings(b"ssh-ed25519\0", b"k" * 32))),
            ("ssh-rsa", in_base64(strings(b"ssh-rsa", b"\x03", b"\0\0\x43"))),
            ("ssh-rsa", in_base64(strings(b"ssh-rsa", b"\x03", b"\xc3"))),
            ("ssh-rsa", in_base64(strings(b"ssh-rsa", b"\x03", b"\x01" * (MPINT_MAX_BYTES + 1)))),
            ("ecdsa-sha2-nistp256", in_base64(strings(b"ecdsa-sha2-nistp256", b"nistp384", POINT))),
            ("ecdsa-sha2-nistp256", in_base64(strings(b"ecdsa-sha2-nistp256", b"nistp256", b"\x02" + b"p" * 32))),
            ("sk-ssh-ed25519@openssh.com", in_base64(strings(b"sk-ssh-ed25519@openssh.com", b"k" * 32, b"a\0b"))),
            ("ssh-ed25519", in_base64(b"\xff\xff\xff\xff")),
            ("ssh-ed25519", "A" * (MAX_OFFERED_CHARS + 4)),
        ],
    )
    def test_anything_else_is_refused(self, key_type: str, text: str) -> None:
        """A key of another type, in another form, cut, with something behind it, or too long, is an error."""
        with pytest.raises(ProtocolError):
            parse_offered_key(key_type, text)

    @pytest.mark.parametrize(
        "parts",
        [
            {"kind": 2},
            {"kind": 0},
            {"forced": (b"ls", b"ls")},
            {"forced": (b"a\0b",)},
            {"critical": strings(b"force-command", string(b"ls") + b"x")},
            {"critical": strings(b"force-command", b"ls")},
            {"critical": strings(b"force-command\0x", string(b"ls"))},
            {"critical": string(b"force-command")},
            {"critical": b"\0\0\0\x09x"},
            {"signer": b""},
            {"signer": strings(b"ssh-dss", b"p", b"q", b"g", b"y")},
            {"signer": certificate_blob()[1]},
            {"signer": AUTHORITY + b"\0"},
        ],
    )
    def test_an_odd_certificate_is_refused(self, parts: dict[str, object]) -> None:
        """A host's certificate, an unreadable one, one with two commands or without a plain signer is an error."""
        with pytest.raises(ProtocolError):
            certificate(**parts)

    def test_a_nul_at_the_end_hides_no_forced_command(self) -> None:
        """OpenSSH's texts may end in a NUL, so the option's name may, and is still found."""
        found = certificate(critical=strings(b"force-command\0", string(b"ls\0"))).certificate
        assert found is not None
        assert found.forced_command == b"ls"

    @given(st.integers(0, 400))
    def test_a_cut_certificate_is_refused(self, length: int) -> None:
        """Every certificate that ends too early, or goes on after its end, is an error."""
        key_type, blob = certificate_blob(forced=(b"ls",))
        changed = blob[:length] if length < len(blob) else blob + bytes(1 + length - len(blob))
        with pytest.raises(ProtocolError):
            parse_offered_key(key_type, in_base64(changed))

    @given(st.sampled_from([*BLOBS, certificate_blob()[0]]), st.binary(max_size=200), st.booleans())
    def test_no_bytes_break_it(self, key_type: str, junk: bytes, named: bool) -> None:  # noqa: FBT001
        """Whatever is offered, the answer is a key or a `ProtocolError`."""
        with contextlib.suppress(ProtocolError):
            parse_offered_key(key_type, in_base64((string(key_type.encode()) if named else b"") + junk))


class TestLines:
    """Which lines are printed, and how."""

    @pytest.mark.parametrize(
        ("line", "printed"),
        [
            (KEY, KEY),
            (KEY + b" me@host", KEY),
            (b" \t " + KEY.replace(b" ", b" \t ") + b"\tcomment\r", KEY),
            (KEY + b"\r", KEY),
            (KEY + b"\0 hidden", KEY),
            (KEY[:30] + b"\r\v\f" + KEY[30:], KEY),
            (b"restrict " + KEY, b"restrict " + KEY),
            (b"Restrict,PTY,No-User-RC\t" + KEY, b"restrict,pty,no-user-rc " + KEY),
            (b", " + KEY, KEY),
            (b",pty,,restrict, " + KEY, b"pty,restrict " + KEY),
            (b'from="10.0.0.0/8,!10.1.*" ' + KEY, b'from="10.0.0.0/8,!10.1.*" ' + KEY),
            (b'expiry-time="20990101Z",verify-required ' + KEY, b'expiry-time="20990101Z",verify-required ' + KEY),
            (b'expiry-time="no time" ' + KEY, b'expiry-time="no time" ' + KEY),  # sshd's to refuse
            (
                b'permitopen="h:1",permitlisten="2",tunnel="0" ' + KEY,
                b'permitopen="h:1",permitlisten="2",tunnel="0" ' + KEY,
            ),
            (b'environment="PATH=/x" ' + KEY, KEY),
            (b'pty,ENVIRONMENT="GATEWAY_COMMAND=aWQ=",restrict ' + KEY, b"pty,restrict " + KEY),
            (b'command="ls" ' + KEY, b'command="ls",' + carrier(b"ls") + b" " + KEY),
            (b'COMMAND="a, b\tc",pty ' + KEY, b'command="a, b\tc",pty,' + carrier(b"a, b\tc") + b" " + KEY),
            (b'command="\\"\\\\\\"x" ' + KEY, b'command="\\"\\\\\\"x",' + carrier(b'"\\\\"x') + b" " + KEY),
            (b'command="\xff\xc3\xa9" ' + KEY, b'command="\xff\xc3\xa9",' + carrier(b"\xff\xc3\xa9") + b" " + KEY),
            (b'command="" ' + KEY, b'command="",' + carrier(b"") + b" " + KEY),
            (
                b'environment="GATEWAY_COMMAND=c2g=",command="ls",environment="GATEWAY_COMMAND=c2g=" ' + KEY,
                b'command="ls",' + carrier(b"ls") + b" " + KEY,
            ),
        ],
    )
    def test_a_line_with_the_key_is_printed(self, line: bytes, printed: bytes) -> None:
        """A line is printed as it was read: lower-case names, no environment but the carrier, no comment."""
        assert permitted_lines(line, OFFERED) == [printed]

    @pytest.mark.parametrize(
        "line",
        [
            b"",
            b"#" + KEY,
            b"  # " + KEY,
            b"\r" + KEY,
            b"\xef\xbb\xbf" + KEY,
            OTHER_KEY,
            KEY[:-1],
            KEY[:-8],
            KEY + b"x",
            KEY + b"#comment",
            KEY + b"=",
            KEY[:30] + b" " + KEY[30:],
            KEY[:30] + b"\0" + KEY[30:],
            KEY.replace(b"ssh-ed25519", b"SSH-ed25519"),
            KEY.replace(b"ssh-ed25519", b"ssh-rsa"),
            KEY.replace(b" ", b"\r"),
            b"cert-authority " + KEY,
            b"unknown " + KEY,
            b"restrict," + OTHER_KEY,
            b"no-restrict " + KEY,
            b"no-no-pty " + KEY,
            b'pty="yes" ' + KEY,
            b"pty\\ " + KEY,
            b"pty;restrict " + KEY,
            b"pty pty " + KEY,
            b"pty,\x0b " + KEY,
            b"command " + KEY,
            b"command=ls " + KEY,
            b"command='ls' " + KEY,
            b'command= "ls" ' + KEY,
            b'command ="ls" ' + KEY,
            b'command="ls ' + KEY,
            b'command="ls\\" ' + KEY,
            b'command="ls"x ' + KEY,
            b'command="ls""ls" ' + KEY,
            b'command="ls",command="ls" ' + KEY,
            b'command="ls",Command="" ' + KEY,
            b'command="\0ls" ' + KEY,
            b'from="*",from="*" ' + KEY,
            b'principals="a",principals="a" ' + KEY,
            b'environment="A" ' + KEY,
            b'environment="=x" ' + KEY,
            b'environment="A B=x" ' + KEY,
            b'environment="\xc4=x" ' + KEY,
            b"environment " + KEY,
            b'no-environment="A=b" ' + KEY,
            b'command="' + KEY + b'" ' + OTHER_KEY,
            OTHER_KEY + b" " + KEY,
            OTHER_KEY + b'\r command="x" ' + KEY,
        ],
    )
    def test_a_line_that_openssh_refuses_is_skipped(self, line: bytes) -> None:
        """It is not printed, and the next line still is."""
        assert permitted_lines(line + b"\n" + KEY, OFFERED) == [KEY]

    @pytest.mark.parametrize(
        "line",
        [
            b'command="a\rb" ' + KEY,
            b'command="a\x7f" ' + KEY,
            b'from="\x01" ' + KEY,
            b'command="' + b"x" * (MAX_COMMAND_BYTES + 1) + b'" ' + KEY,
        ],
    )
    def test_a_line_that_only_we_refuse_ends_the_file(self, line: bytes) -> None:
        """OpenSSH may let the key in by this line, so none below it may rule in its place; the ones above stand."""
        assert permitted_lines(b"pty " + KEY + b"\n" + line + b"\n" + KEY, OFFERED) == [b"pty " + KEY]

    def test_the_longest_command_is_carried(self) -> None:
        """A command of exactly the largest size is still printed and can be read back."""
        command = b"x" * MAX_COMMAND_BYTES
        (line,) = permitted_lines(b'command="' + command + b'" ' + KEY, OFFERED)
        assert carrier(command) in line
        assert decode_command(encode_command(command)) == command.decode()

    def test_order_is_the_files(self) -> None:
        """Several lines for a key come out in their order, since the first that sshd accepts rules."""
        content = b"restrict %b\n%b\npty %b\n%b\n" % (KEY, OTHER_KEY, KEY, KEY)
        assert permitted_lines(content, OFFERED) == [b"restrict " + KEY, b"pty " + KEY, KEY]

    def test_lines_for_one_key_have_a_bound(self) -> None:
        """More lines than the bound are cut off at the end, which lets nobody in who would not be."""
        assert permitted_lines((KEY + b"\n") * 1000, OFFERED) == [KEY] * MAX_PERMITTED_LINES

    def test_only_a_newline_ends_a_line(self) -> None:
        """Other bytes that some languages take for the end of a line hide no key behind a comment."""
        for end in (b"\r", b"\v", b"\f", b"\x1c", b"\x85", "\u2028".encode()):
            assert permitted_lines(b"# comment" + end + KEY, OFFERED) == []

    @pytest.mark.parametrize(("extra", "printed"), [(0, [KEY]), (1, [])])
    def test_a_file_too_large_lets_nobody_in(self, extra: int, printed: list[bytes]) -> None:
        """One byte more than the largest size, and nothing is printed."""
        assert permitted_lines((KEY + b"\n").ljust(MAX_CONTENT_BYTES + extra, b"#"), OFFERED) == printed

    @pytest.mark.parametrize(("count", "printed"), [(1025, [KEY]), (1026, [])])
    def test_openssh_bounds_environment_options(self, count: int, printed: list[bytes]) -> None:
        """As many variables as OpenSSH takes are left out; with one more it refuses the line, and so do we."""
        options = b",".join(b'environment="A%d=x"' % number for number in range(count))
        assert permitted_lines(options + b" " + KEY, OFFERED) == printed

    @pytest.mark.parametrize(
        ("name", "blob"),
        [
            ("rsa-sha2-256", RSA),
            ("rsa-sha2-512", RSA),
            ("ssh-rsa", strings(b"ssh-rsa\0", b"\0\x01\x00\x01", b"\0\0\0" + b"\xc3" * 256)),
        ],
    )
    def test_the_same_key_in_another_form_is_the_same_key(self, name: str, blob: bytes) -> None:
        """OpenSSH compares keys, not their encodings: such a line rules over those below it, and is printed plain."""
        offered = parse_offered_key("ssh-rsa", in_base64(RSA))
        content = f"restrict {name} {in_base64(blob)}\nssh-rsa {in_base64(RSA)}\n".encode()
        plain = f"ssh-rsa {in_base64(RSA)}".encode()
        assert permitted_lines(content, offered) == [b"restrict " + plain, plain]

    @pytest.mark.parametrize(
        "line",
        [
            b"ssh-ed25519 " + base64.b64encode(strings(b"ED25519", b"k" * 32)),
            b"restrict,pty ssh-ed25519 " + base64.b64encode(strings(b"ed25519", b"k" * 32)),
            b'from="10.0.0.0/129,*" ' + KEY,
            b'from="*,10.0.0.0/99999999999999999999" ' + KEY,
            b'from="!10.0.0.0/ 8,*" ' + KEY,
            b'from="10.0.0.0/+8" ' + KEY,
            b'pty,FROM="::1/-0" ' + KEY,
            b'expiry-time="19600101" ' + KEY,
            b'expiry-time="19700101000000Z" ' + KEY,
            b'expiry-time="00000101UTC" ' + KEY,
            b'expiry-time=" 2990101" ' + KEY,
            b'expiry-time="2099 1 1Z" ' + KEY,
            b'expiry-time="20990101000060" ' + KEY,
            b'expiry-time="20990101",expiry-time="19600101" ' + KEY,
            b'principals="' + b",".join(b"p%d" % number for number in range(41)) + b'" ' + KEY,
            b'permitopen="host:ssh" ' + KEY,
            b'permitopen="host:22",permitopen="[::1]:ssh" ' + KEY,
            b'permitopen="host/ssh" ' + KEY,
            b'permitopen="host:22/tcp" ' + KEY,
            b'permitopen="[::1:22]:x" ' + KEY,
            b'permitlisten="ssh" ' + KEY,
            b'permitlisten="host:ssh" ' + KEY,
        ],
    )
    def test_a_line_on_which_versions_differ_ends_the_file(self, line: bytes) -> None:
        """In one version it rules, another passes it over: neither it nor a line below lets the key in."""
        content = b"restrict " + KEY + b"\n" + line + b"\n" + KEY + b"\n" + OTHER_KEY + b"\n"
        assert permitted_lines(content, OFFERED) == [b"restrict " + KEY]
        other = parse_offered_key("ssh-ed25519", in_base64(OTHER))
        assert permitted_lines(content, other) == [OTHER_KEY]

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            (b"from", [b"10.0.0.0/8", b"!::1/128,*", b"10.0.0.0/033", b"10.0.0.1", b"a,,b", b""]),
            (b"from", [b"10.0.0.0/255.0.0.0,::1", b"10.0.0.0/,*", b"10.0.0.0/8/8", b"::/x8"]),
            (b"expiry-time", [b"19710101235959utc", b"209901012359", b"20991301", b"1960010", b"never", b""]),
            (b"principals", [b",".join([b"p"] * 40), b"a,,b", b",a", b""]),
            (b"permitopen", [b"ssh:22", b"ssh", b"ssh:*", b"[::1]:99999", b"[::1]x:y", b"h:", b""]),
            (b"permitlisten", [b"22", b"*", b"[::1]:0", b"h: 22", b"h:-1"]),
        ],
    )
    def test_an_option_that_all_versions_read_alike_is_printed(self, name: bytes, values: list[bytes]) -> None:
        """Whether it is right is sshd's to say: what all refuse they pass over."""
        for value in values:
            line = b'%s="%s" %s' % (name, value, KEY)
            assert permitted_lines(line, OFFERED) == [line]

    def test_a_line_that_all_versions_refuse_ends_nothing(self) -> None:
        """Neither an option that none knows nor an authority's line hides the lines below, whatever else they have."""
        short = b"ssh-ed25519 " + base64.b64encode(strings(b"ED25519", b"k" * 32))
        for line in (b"nonsense " + short, b"cert-authority " + short, b'expiry-time="19600101",x ' + KEY):
            assert permitted_lines(line + b"\n" + KEY, OFFERED) == [KEY]

    @pytest.mark.parametrize("key_type", BLOBS)
    def test_every_type_has_lines(self, key_type: str) -> None:
        """A key of each type is found among keys of all types, and no other is."""
        content = "".join(f"pty {name} {in_base64(blob)} c\n" for name, blob in BLOBS.items()).encode()
        offered = parse_offered_key(key_type, in_base64(BLOBS[key_type]))
        assert permitted_lines(content, offered) == [f"pty {key_type} {in_base64(BLOBS[key_type])}".encode()]

    def test_a_certified_key_is_not_the_plain_key(self) -> None:
        """A line with the plain key does not let in a certificate for that key, nor the other way round."""
        assert permitted_lines(KEY, certificate()) == []
        key_type, blob = certificate_blob()
        assert permitted_lines(f"{key_type} {in_base64(blob)}".encode(), OFFERED) == []


class TestAuthorities:
    """Lines for certificates."""

    @pytest.mark.parametrize(
        ("line", "forced", "printed"),
        [
            (b"cert-authority ", (), b"cert-authority "),
            (b'CERT-authority,principals="a,b" ', (), b'cert-authority,principals="a,b" '),
            (b'cert-authority,principals="a,," ', (), b'cert-authority,principals="a,," '),
            (b'cert-authority,principals="" ', (), b'cert-authority,principals="" '),
            (b"cert-authority ", (b"ls",), b"cert-authority," + carrier(b"ls") + b" "),
            (b"cert-authority ", (b"a\nb",), b"cert-authority," + carrier(b"a\nb") + b" "),
            (b"cert-authority ", (b"",), b"cert-authority," + carrier(b"") + b" "),
            (b'cert-authority,command="ls" ', (), b'cert-authority,command="ls",' + carrier(b"ls") + b" "),
            (b'cert-authority,command="ls" ', (b"ls",), b'cert-authority,command="ls",' + carrier(b"ls") + b" "),
            (b'cert-authority,environment="A=b" ', (), b"cert-authority "),
        ],
    )
    def test_an_authoritys_line_is_printed(self, line: bytes, forced: tuple[bytes, ...], printed: bytes) -> None:
        """The carrier holds the command of the line or of the certificate, whichever there is."""
        assert permitted_lines(line + AUTHORITY_KEY, certificate(forced=forced)) == [printed + AUTHORITY_KEY]

    @pytest.mark.parametrize(
        ("line", "forced"),
        [
            (AUTHORITY_KEY, ()),
            (b"cert-authority " + OTHER_KEY, ()),
            (b"cert-authority " + KEY, ()),
            (b"no-cert-authority " + AUTHORITY_KEY, ()),
            (b'cert-authority="yes" ' + AUTHORITY_KEY, ()),
            (b'cert-authority,command="ls" ' + AUTHORITY_KEY, (b"sh",)),
            (b'cert-authority,command="ls" ' + AUTHORITY_KEY, (b"",)),
            (b'cert-authority,command="" ' + AUTHORITY_KEY, (b"ls",)),
            (b"cert-authority " + AUTHORITY_KEY, (b"x" * (MAX_COMMAND_BYTES + 1),)),
        ],
    )
    def test_no_other_line_is(self, line: bytes, forced: tuple[bytes, ...]) -> None:
        """A line without cert-authority, with another key or with another command does not serve a certificate."""
        assert permitted_lines(line, certificate(forced=forced)) == []

    def test_an_authoritys_own_key_is_no_login(self) -> None:
        """Whoever holds the authority's key logs in by a certificate, not by the key itself."""
        authority = parse_offered_key("ssh-ed25519", in_base64(AUTHORITY))
        assert permitted_lines(b"cert-authority " + AUTHORITY_KEY, authority) == []


class TestCarrier:
    """The command on its way to the session."""

    @given(st.binary(max_size=300).filter(lambda command: b"\0" not in command))
    @example(b"")
    def test_a_command_comes_back(self, command: bytes) -> None:
        """What is decoded is what was encoded, byte for byte, and the value is never empty."""
        value = encode_command(command)
        assert value
        assert decode_command(value).encode("utf-8", "surrogateescape") == command

    @pytest.mark.parametrize(
        "value",
        ["", "!", "bHM", "bHM=\n", " bHM=", "bHN=", "bHM==", "==", "bHM=bHM=", "é", "\udcff", "AA==", "b" * 200_000],
    )
    def test_anything_else_is_refused(self, value: str) -> None:
        """An empty, odd, cut or over-long value, or a NUL in the command, is an error: then nothing may be run."""
        with pytest.raises(ProtocolError):
            decode_command(value)

    def test_an_empty_command_is_not_an_empty_variable(self) -> None:
        """``command=""`` runs nothing, and must not look like having no forced command."""
        assert encode_command(b"") == EMPTY_COMMAND
        assert decode_command(EMPTY_COMMAND) == ""


# Text near enough to key lines that whole ones come up often.
FRAGMENTS = st.sampled_from([
    KEY, OTHER_KEY, AUTHORITY_KEY, b"ssh-ed25519", KEY[12:], b" ", b"\t", b"\n", b"\r", b"\0", b",", b"=", b"#", b'"',
    b"\\", b'\\"', b"restrict", b"pty", b"cert-authority,", b"cert-authority ", b'command="ls",', b'command="x" ',
    b"no-", b"command=", b'environment="GATEWAY_COMMAND=aWQ=",', b'environment="', b'from="', b'principals="', b"\x01",
])  # fmt: skip
CONTENT = st.one_of(
    st.lists(st.one_of(FRAGMENTS, FRAGMENTS, st.binary(max_size=4)), max_size=30).map(b"".join), st.binary()
)
OFFERS = st.sampled_from(
    [OFFERED, certificate(), certificate(forced=(b"ls",)), parse_offered_key("ssh-rsa", in_base64(RSA))]
)
PRINTED = re.compile(
    rb'(?:(?P<options>(?:[a-z0-9-]+(?:="(?:\\"|[^"])*")?,?)+) )?(?P<key>[a-z0-9@.-]+ [A-Za-z0-9+/]+=*)'
)


class TestProperties:
    """What holds for every file."""

    @given(CONTENT, OFFERS)
    def test_only_the_offered_key_is_printed(self, content: bytes, offered: OfferedKey) -> None:
        """Every line has the offered key, or the authority's with cert-authority, and no control character."""
        wanted = offered.certificate.signature_key if offered.certificate else offered.blob
        for line in permitted_lines(content, offered):
            match = PRINTED.fullmatch(line)
            assert match
            assert match["key"] == b"%b %b" % (canonical_key(wanted)[0].encode(), base64.b64encode(wanted))
            outside = re.sub(rb'"(?:\\"|[^"])*"', b'""', match["options"] or b"").split(b",")
            assert (b"cert-authority" in outside) == (offered.certificate is not None)
            assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", line)

    @given(CONTENT, OFFERS)
    def test_no_environment_but_the_carrier(self, content: bytes, offered: OfferedKey) -> None:
        """A line has the carrier just when it has a command or the certificate forces one, and nothing else is set."""
        for line in permitted_lines(content, offered):
            options = (PRINTED.fullmatch(line) or {"options": None})["options"] or b""
            values = dict(re.findall(rb'([a-z-]+)="((?:\\"|[^"])*)"', options))
            command = values.get(b"command", b"").replace(b'\\"', b'"') if b"command" in values else None
            if offered.certificate and offered.certificate.forced_command is not None:
                command = offered.certificate.forced_command
            expected = [] if command is None else [carrier(command)]
            assert re.findall(rb'environment="[^"]*"', re.sub(rb'command="(?:\\"|[^"])*"', b"", options)) == expected

    @given(CONTENT, OFFERS)
    def test_filtering_twice_changes_nothing(self, content: bytes, offered: OfferedKey) -> None:
        """What is printed is read again as itself: there is one reading of it."""
        once = permitted_lines(content, offered)
        assert permitted_lines(b"\n".join(once), offered) == once

    @given(CONTENT, CONTENT)
    def test_other_lines_do_not_matter(self, content: bytes, other: bytes) -> None:
        """Lines without the offered key, whatever they hold, change nothing."""
        without = b"\n".join(line for line in other.split(b"\n") if KEY[12:40] not in line)
        assert permitted_lines(without + b"\n" + content, OFFERED) == permitted_lines(content, OFFERED)

    @pytest.mark.parametrize(
        "line",
        [
            b"ssh-ed25519 A\n",
            OTHER_KEY + b"\n",
            b'from="x",from="y" ' + KEY + b"\n",
            b"pty," * 1000 + KEY + b"x\n",
            b"," * 100_000 + b" " + KEY + b"x\n",
            b'command="' + b'\\"' * 100_000 + b" " + KEY + b"\n",
            b'"' * 100_001 + b" " + KEY + b"\n",
            b"\\" * 100_000 + b" " + KEY + b"\n",
            b"ssh-ed25519" + b" " * 100_000 + b"\n",
            b"\n",
            b"x" * MAX_CONTENT_BYTES,
            b"\t" * (MAX_CONTENT_BYTES - 100) + KEY,
            b"ssh-ed25519 " * 90_000,
            b'environment="A=",' * 60_000 + KEY,
        ],
    )
    def test_no_file_takes_long(self, line: bytes) -> None:
        """The largest hostile files take a fraction of a second, a bound that anything quadratic misses by minutes."""
        content = (line * (MAX_CONTENT_BYTES // len(line) + 1))[:MAX_CONTENT_BYTES]
        began = time.process_time()
        permitted_lines(content, OFFERED)
        assert time.process_time() - began < 5

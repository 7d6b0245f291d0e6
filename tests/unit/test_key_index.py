"""The index of an authorized_keys file: the same lines as by reading the file for each key, and one reading a file."""

from __future__ import annotations

import asyncio
import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.test_authorized_keys import AUTHORITY, BLOBS, ED25519, OTHER, RSA, certificate, in_base64, strings

from helpers.broker.keys.key_index import (
    MAX_CONTENT_BYTES,
    MAX_INDEXES_BYTES,
    MAX_PERMITTED_LINES,
    READ_AT_ONCE_BYTES,
    KeyIndex,
    KeyIndexes,
)
from helpers.ssh.authorized_keys import BadLineError, LastLineError, OfferedKey, parse_offered_key, read_line

OFFERED = [
    *(parse_offered_key(name, in_base64(blob)) for name, blob in {**BLOBS, "ssh-rsa": RSA}.items()),
    parse_offered_key("ssh-ed25519", in_base64(OTHER)),
    certificate(),
    *(certificate(forced=(forced,)) for forced in (b"ls", b"", b"a\rb")),
    certificate(signer=ED25519),
]
TEXTS = [
    f"{name} {in_base64(blob)}".encode()
    for name, blob in [*BLOBS.items(), ("ssh-ed25519", OTHER), ("ssh-ed25519", AUTHORITY), ("ssh-rsa", b"\0")]
]
TEXTS += [b"ssh-ed25519 " + base64.b64encode(strings(b"ED25519", key)) for key in (b"k" * 32, b"c" * 32)]
OPTIONS = [
    b"", b"restrict ", b"cert-authority ", b"cert-authority,", b'command="ls" ', b'cert-authority,command="ls" ',
    b'cert-authority,command="" ', b'cert-authority,command="a\rb" ', b'environment="A=b" ', b'expiry-time="19600101" ',
    b'cert-authority,from="::/129" ', b'from="\x01" ', b"nonsense ", b"#", b'command="' + b"x" * 24_577 + b'" ',
]  # fmt: skip


def one_by_one(content: bytes, offered: OfferedKey) -> list[bytes]:
    """Find a key's lines as sshd would: from the top, line by line."""
    printed: list[bytes] = []
    for text in content.split(b"\n"):
        try:
            key, is_authority, line = read_line(text)
            if key != offered.wanted or is_authority != (offered.certificate is not None):
                continue
            if line is None or len(printed) == MAX_PERMITTED_LINES:
                break
            printed.append(line.printed_for(offered))
        except BadLineError:
            continue
        except LastLineError:
            break
    return printed


written = st.tuples(
    st.sampled_from(OPTIONS), st.sampled_from(TEXTS), st.sampled_from([b"", b" me@host", b"\0x", b"\r"])
)
contents = st.lists(st.one_of(written.map(b"".join), st.binary(max_size=90)), max_size=12).map(b"\n".join)


class TestKeyIndex:
    """One file."""

    @given(contents)
    def test_it_finds_what_a_reading_from_the_top_finds(self, content: bytes) -> None:
        """For each key and each certificate: the same lines, in the same order, to the same end."""
        index = KeyIndex(content)
        for offered in OFFERED:
            assert index.permitted_lines(offered) == one_by_one(content, offered)

    @pytest.mark.parametrize("options", [b"", b"cert-authority "])
    @pytest.mark.parametrize("count", [MAX_PERMITTED_LINES - 1, MAX_PERMITTED_LINES, MAX_PERMITTED_LINES + 1])
    def test_many_lines_for_a_key_are_bounded_alike(self, options: bytes, count: int) -> None:
        """Lines that a certificate passes over do not count, and what ends the file does so beyond the bound too."""
        key = b"ssh-ed25519 " + base64.b64encode(ED25519) + b"\n"
        content = b'cert-authority,command="no" %b' % key * 300 + b"%b%b" % (options, key) * count
        for tail in (b"", b'expiry-time="19600101" ' + key, b'cert-authority,expiry-time="19600101" ' + key):
            index = KeyIndex(content + tail + key)
            for offered in (OFFERED[0], certificate(signer=ED25519), certificate(signer=ED25519, forced=(b"yes",))):
                assert index.permitted_lines(offered) == one_by_one(content + tail + key, offered)

    def test_the_shortest_key_is_found(self) -> None:
        """A line too short for any key is not read, and the shortest key is none of them."""
        for blob in (strings(b"ssh-rsa", b"", b""), strings(b"ssh-rsa", b"\x01", b"")):
            offered = parse_offered_key("ssh-rsa", in_base64(blob))
            content = b"ssh-rsa " + base64.b64encode(blob)
            assert KeyIndex(content).permitted_lines(offered) == one_by_one(content, offered) == [content]

    def test_a_file_too_large_is_not_read(self) -> None:
        """It permits nothing, and takes its own size and no more."""
        index = KeyIndex(b"%b\n" % TEXTS[0] * (MAX_CONTENT_BYTES // len(TEXTS[0])))
        assert index.permitted_lines(OFFERED[0]) == []
        assert index.size_bytes < MAX_CONTENT_BYTES * 1.1


def _file(number: int, size: int = READ_AT_ONCE_BYTES + 1) -> bytes:
    return (b"# %d\n%b\n" % (number, TEXTS[0])).ljust(size, b"#")


@pytest.mark.timeout(20)
class TestKeyIndexes:
    """The files that keys are offered against."""

    @pytest.mark.parametrize("size", [100, READ_AT_ONCE_BYTES, READ_AT_ONCE_BYTES + 1, MAX_CONTENT_BYTES])
    async def test_a_file_is_read_once(self, size: int) -> None:
        """All who ask, at once or later, and also with another copy of the same bytes, get the one index."""
        indexes = KeyIndexes()
        found = await asyncio.gather(*(indexes.of(_file(1, size)) for _ in range(40)))
        found += [await indexes.of(_file(1, size)) for _ in range(40)]
        assert len({id(index) for index in found}) == indexes.read == 1
        assert found[0].permitted_lines(OFFERED[0]) == [TEXTS[0]]

    async def test_other_bytes_are_another_file(self) -> None:
        """A changed file is read again, and only its bytes tell that it changed."""
        indexes = KeyIndexes()
        for number in range(3):
            await indexes.of(_file(number))
        assert indexes.read == 3
        changed = await indexes.of(_file(1).replace(TEXTS[0], b"restrict " + TEXTS[0]))
        assert changed.permitted_lines(OFFERED[0]) == [b"restrict " + TEXTS[0]]
        assert (await indexes.of(_file(1))).permitted_lines(OFFERED[0]) == [TEXTS[0]]
        assert indexes.read == 4

    async def test_one_that_leaves_takes_the_reading_from_nobody(self) -> None:
        """A login that gives up meanwhile does not end what others wait for."""
        indexes = KeyIndexes()
        impatient, patient = (asyncio.create_task(indexes.of(_file(1))) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).permitted_lines(OFFERED[0]) == [TEXTS[0]]
        assert impatient.cancelled()
        assert indexes.read == 1

    async def test_memory_has_a_bound(self) -> None:
        """Files that were not used for longest are forgotten, and read again when they are needed."""
        indexes = KeyIndexes()
        count = MAX_INDEXES_BYTES // MAX_CONTENT_BYTES
        for number in range(count + 1):
            await indexes.of(_file(number, MAX_CONTENT_BYTES))
        assert indexes.read == count + 1
        await indexes.of(_file(count, MAX_CONTENT_BYTES))
        assert indexes.read == count + 1
        await indexes.of(_file(0, MAX_CONTENT_BYTES))
        assert indexes.read == count + 2

"""Compares the filter of key lines with OpenSSH itself, over thousands of generated files.

The oracle is a real sshd with the file as AuthorizedKeysFile. Beside it, the same sshd gets what the filter printed,
from AuthorizedKeysCommand, with PermitUserEnvironment as the gateway has it. Whoever the oracle refuses must be
refused; whoever it lets in must come in with the same options, and a ``command=`` must arrive in the carrier. Where
the filter is stricter, the reason is one of `STRICTER`.

Where there is the sshd of another version (``make test`` makes a tree of another release of Debian), each version is an
oracle for each: the remote's sshd may be another one than the gateway's.

``KEYLINE_FILES=20000 KEYLINE_SEED=7`` looks at more of them, and at others.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import paramiko
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import strategies as st
from system.keyline_oracle import USER, Judge, Offer, Verdict, is_possible

from helpers.broker.keys.key_index import KeyIndex
from helpers.protocol.errors import ProtocolError
from helpers.ssh.authorized_keys import decode_command, parse_offered_key, with_expiry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILES = int(os.environ.get("KEYLINE_FILES", "800"))
"""How many files are made by chance, of one to four lines each; for each of them three keys are offered. About 300 more
have one word of the language each."""

SEED = int(os.environ.get("KEYLINE_SEED", "0"))
"""Which files are made."""

LOGINS = 160
"""How many whole logins, at least, are compared beside that; each costs some 0.3 s of CPU in all."""

FILES_AT_ONCE = 50
"""How many files are joined into one for the oracle, each with keys of its own, and asked about in one connection."""

CONNECTIONS_AT_ONCE = 12
"""sshd sleeps for most of a query (5 to 20 ms), so there are many at a time."""

# The base64 of a blob that begins with Ed25519, RSA or ED25519-SK.
_SHORT_NAMES = (b"AAAAB0VkMjU1MTk", b"AAAAA1JTQ", b"AAAACkVEMjU1MTktU0")

STRICTER = {
    "control character": re.compile(rb'="(?:\\"|[^"\n])*[\x01-\x08\x0b-\x1f\x7f]'),
    # In a quoted value; a tab is kept. sshd would write them to logs and environments; no editor puts them there.
    "short name": re.compile(b"|".join(re.escape(text) for text in _SHORT_NAMES)),
    "length of a network": re.compile(rb'(?i)from="[^"\n]*/(?:129|[ +-])'),
    "odd time": re.compile(rb'(?i)expiry-time="(?!(?:2|1971)(?:[0-9]{7}|[0-9]{11}|[0-9]{11}[0-5][0-9])(?:z|utc)?")'),
    "many principals": re.compile(rb'(?i)principals="(?:[^",\n]*,){40}'),
    "named port": re.compile(
        rb'(?i)permit(?:open="(?:\\"|[^"\n])*[:/](?:\\"|[^"\n])*|listen="(?:\\"|[^"\n])*)(?:\\"|[^"\n0-9*])'
    ),
}
"""Why the filter may refuse what a version of OpenSSH accepts: a pattern that one of the file's lines then has. All
but the first are where versions or machines differ; so are certificates that have no principal, an empty one, or one
with a comma.

Beyond what is generated here (see tests/unit/test_authorized_keys.py): files over 1 MiB, commands over 24 KiB, more
than 256 lines for one key, DSA keys and authorities, and certificates whose own type has another of OpenSSH's names
for it.
"""

FILTERED = ("AuthorizedKeysFile none", "AuthorizedKeysCommandUser nobody", "PermitUserEnvironment GATEWAY_COMMAND")

# The words of the language that the files are written in. Each table has what usually lets somebody in, then what is
# odd, rarely used or broken: most files should let somebody in, or little would be compared.
FLAGS = (
    "restrict", "pty", "no-pty", "port-forwarding", "no-port-forwarding", "agent-forwarding", "no-agent-forwarding",
    "x11-forwarding", "no-X11-forwarding", "user-rc", "no-user-rc", "touch-required", "no-touch-required",
    "verify-required", "no-verify-required", "RESTRICT", "Pty", "NO-PTY", "nO-uSer-rc",
)  # fmt: skip
BROKEN_OPTIONS = (
    "no-restrict", "no-cert-authority", "no-no-pty", "ptyx", "pty=", 'pty="yes"', "command", "command=", "command=ls",
    "command='ls'", 'command ="ls"', 'command= "ls"', 'no-command="ls"', 'command="ls', 'command=ls"', '"command=ls"',
    'command="a"b', 'command="a""b"', 'comand="ls"', 'zos-key-ring-label="x"', "", " ", "\t", "\\", '"', '\\"', "'",
    "#", "\ufeff", "ssh-rsa", "ssh-ed25519", "permit-pty", "environment", "from", 'expiry_time="20990101"',
    "cert-authority", 'principals="other"', "restrict\x0b", "\xa0pty", "pt\u0131", "command=\u201cls\u201d",
)  # fmt: skip
PIECES = (
    '\\"', '\\"', "\\", "\\\\", '\\\\\\"', '\\\\"', '"', ",", " ", "\t", "=", "#", "a", "ls -l", "é", "\r", "\x01",
    "\x7f", "'", "$(id)", "%u", "\u2028", "\x80",
)  # fmt: skip
VALUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "command": (("ls", 'echo "a b"', "from-certificate", "a,b  c", "exit 3 # é", "a\tb", 'a\\"b'), ("", "\\", "a\rb")),
    "from": (
        ("127.0.0.1", "127.0.0.0/8", "*", "10.*,127.*"),
        (
            *("10.0.0.1", "!127.0.0.1,*", "", "127.0.0.0/33", "localhost", "a b", "10.0.0.0/129,*", "127.0.0.0/+8,*"),
            *(
                "127.0.0.0/255.0.0.0,127.0.0.1",
                "127.0.0.1,::/129",
                "127.0.0.0/ 8",
                "!127.0.0.0/-0,127.*",
                "127.0.0.0/008",
            ),
        ),
    ),
    "expiry-time": (
        ("20990101", "20990101Z", "209901010000", "20990101000000", "20990101utc"),
        (
            *("20200101", "20200101000000Z", "19700101Z", "0", "", "never", "20991301", " 20990101", "19710101"),
            *("19600101", "19691231235959Z", "00000101", " 2990101", "2099 1 1", "20990101000060", "-2990101"),
        ),
    ),
    "environment": (
        (
            "GATEWAY_COMMAND=aWQ=",
            "gateway_command=aWQ=",
            "GATEWAY_COMMAND=",
            "PATH=/x",
            "LD_PRELOAD=/x",
            "A=b=c",
            'A="',
        ),
        ("A", "=x", "", "A B=c", "A-B=c", "\xc4=c", "_="),
    ),
    "permitopen": (
        ("host:22", "host:*", "*:22", "[::1]:22"),
        ("22", "host", "", "host:0", "host:x", "host:99999", "*", "host:ssh", "host/22", "[::1]:ssh"),
    ),
    "permitlisten": (
        ("host:22", "22", "*", "[::1]:22"),
        ("host", "", "host:0", "host:x", "99999", "ssh", " 22", "host:22/tcp"),
    ),
    "tunnel": (("0", "any"), ("1:2", "", "x", "-1")),
    "principals": (
        (USER, f"other,{USER}", f"{USER},"),
        ("other", "", f" {USER}", "*", f"!{USER},*", f",{USER}", f"x,,{USER}", "x," * 39 + USER, "x," * 40 + USER),
    ),
}
KEY_SHAPES = (
    *("plain",) * 50, "alias", "alias", "alias", "cr", "cr", "vt", "vt", "twice", "cut", "unpadded", "split",
    "typeless", "wrong type", "comment glued",
)  # fmt: skip
TAILS = ("", " me@host", "\tme@host", " two  # here", "\r", " me@host\r", " ", " \x01", ' command="x"', "\0", " é")
MUTANTS = (0x00, 0x09, 0x0B, 0x0C, 0x0D, 0x20, 0x22, 0x23, 0x2C, 0x2D, 0x3D, 0x5C, 0x61, 0x7F, 0x80, 0xFF)


def _rarely(odd: st.SearchStrategy[str], usual: st.SearchStrategy[str], one_in: int) -> st.SearchStrategy[str]:
    return st.integers(1, one_in).flatmap(lambda dice: odd if dice == one_in else usual)


def _valued(name: str) -> st.SearchStrategy[str]:
    usual, odd = (st.sampled_from([value.replace('"', '\\"') for value in values]) for values in VALUES[name])
    anything = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
    value = _rarely(st.one_of(odd, anything), usual, 8)
    return st.tuples(st.sampled_from([name] * 3 + [name.upper(), name.title()]), value).map('{0[0]}="{0[1]}"'.format)


option = st.one_of(
    st.sampled_from(FLAGS),
    *map(_valued, ("command", "command", "from", "expiry-time", "environment", "permitopen", "permitlisten", "tunnel")),
    st.lists(st.sampled_from(PIECES[:-9]), max_size=6).map("".join).map('command="{}"'.format),
)
rare_option = _rarely(st.sampled_from(BROKEN_OPTIONS), option, 25)
separator = _rarely(st.sampled_from([",,", ", ", " ,", "", ";"]), st.just(","), 40)
lead = _rarely(st.sampled_from(["#", "\r", ",", "\x0b", ",,,"]), st.sampled_from(["", "", " ", "\t "]), 25)
gap = _rarely(st.sampled_from(["\r ", "\x0c", " \r"]), st.sampled_from([" ", " ", "\t", " \t "]), 40)


@dataclass(frozen=True)
class Line:
    """A line before it is known which keys it is about.

    Attributes:
        lead: What stands before the options.
        options: The options, joined; "" for none.
        gap: What stands between options, key type and key.
        who: Whose key it is: ``user``, ``authority`` or ``stranger``.
        shape: One of `KEY_SHAPES`.
        tail: What follows the key.
        mutant: A byte to put in, and where (a share of the line's length); None for none.
    """

    lead: str
    options: str
    gap: str
    who: str
    shape: str
    tail: str
    mutant: tuple[int, float] | None


@st.composite
def lines(draw: st.DrawFn) -> Line:
    """Make a line: most of those for an authority's key say so, and few give an option twice that may stand once."""
    names = draw(st.lists(rare_option, max_size=4))
    who = draw(st.sampled_from(["user"] * 6 + ["authority"] * 5 + ["stranger"]))
    if who == "authority" and draw(st.integers(0, 3)):
        extra = ["cert-authority", "Cert-Authority"][: draw(st.integers(1, 2))]
        extra += [draw(_valued("principals"))] if draw(st.booleans()) else []
        names = draw(st.permutations([*names, *extra]))
    if draw(st.integers(0, 9)):
        names = list({name.partition("=")[0].lower() if "=" in name else name: name for name in names}.values())
    joined = "".join(name + draw(separator) for name in names[:-1]) + (names[-1] if names else "")
    rare = draw(st.integers(0, 19))
    return Line(
        lead=draw(lead),
        options=joined,
        gap=draw(gap),
        who=who,
        shape=draw(st.sampled_from(KEY_SHAPES)),
        tail=draw(st.sampled_from(TAILS)),
        mutant=(draw(st.sampled_from(MUTANTS)), draw(st.floats(0, 1))) if rare == 0 else None,
    )


@dataclass(frozen=True)
class Draft:
    """A file before it is known which keys it is about, and what the certificate offered against it says."""

    lines: tuple[Line, ...]
    end: str
    principals: tuple[str, ...]
    forced: tuple[str, ...]
    permissions: tuple[str, ...]


drafts = st.builds(
    Draft,
    lines=st.lists(lines(), min_size=1, max_size=4).map(tuple),
    end=st.sampled_from(["\n", "", "\r\n", "\n\n\n"]),
    principals=st.sampled_from(
        [(USER,), (USER,), (USER,), ("other", USER), (USER, "x"), ("other",), (), (f"x,{USER}",), (USER, "")]
    ),
    forced=st.sampled_from([(), (), ("from-certificate",), ("ls",), ("",), ("a\nb",), ("ls", "ls")]),
    permissions=st.sampled_from([("permit-pty",), ("permit-pty",), (), ("permit-pty", "permit-user-rc"), ("odd",)]),
)


class Case:
    """A file with keys of its own, which nobody else has: a user's, an authority's, and a certificate by the authority.

    Args:
        number: Which case it is; all keys come from it.
        draft: The file, but for the keys.
    """

    def __init__(self, number: int, draft: Draft) -> None:
        """Make the keys and write the file."""
        self.number = number
        self.principals = draft.principals
        self.user_key = _ed25519(f"user {number}")
        self.certified = _ed25519(f"certified {number}")
        self.authority = _ecdsa(number) if number % 5 == 0 else _ed25519(f"authority {number}")
        self.user = _user_offer(number, self.user_key)
        blob = _blob(self.authority)
        kind = _type_of(blob)
        self.signer = Offer(kind, kind, blob, blob)
        self.certificate = self._certify(draft)
        self.offers = (self.user, self.signer, self.certificate)
        written = [self._write(line) for line in draft.lines]
        self.content = b"\n".join(written) + draft.end.encode()

    def _write(self, line: Line) -> bytes:
        blobs = {"user": self.user.blob, "authority": self.signer.blob, "stranger": _blob(_ed25519("stranger"))}
        gap, options = line.gap.encode(), line.options.encode()
        key = _shaped(blobs[line.who], line.shape, gap)
        written = line.lead.encode() + (options + gap if options else b"") + key + line.tail.encode()
        if line.mutant is not None:
            at = int(line.mutant[1] * len(written))
            written = written[:at] + bytes([line.mutant[0]]) + written[at:]
        return written

    def _certify(self, draft: Draft) -> Offer:
        plain = _blob(self.certified)
        public = plain[len(_text("ssh-ed25519")) :]
        critical = b"".join(_text("force-command") + _string(_text(command)) for command in draft.forced)
        extensions = b"".join(_text(name) + _text("") for name in sorted(draft.permissions))
        kind = "ssh-ed25519-cert-v01@openssh.com"
        body = _text(kind) + _text("nonce") + public + bytes(8) + (1).to_bytes(4, "big") + _text("an id")
        body += _string(b"".join(map(_text, draft.principals))) + bytes(8) + b"\xff" * 8
        body += _string(critical) + _string(extensions) + _text("") + _string(self.signer.blob)
        return Offer(kind, kind, body + _string(_sign(self.authority, body)), plain)

    def filtered(self, offer: Offer, content: bytes) -> bytes:
        """Give a file to the filter; nothing where the offer itself is refused, as the broker does."""
        try:
            offered = parse_offered_key(offer.key_type, base64.b64encode(offer.blob).decode())
        except ProtocolError:
            return b""
        return b"".join(line + b"\n" for line in KeyIndex(content).permitted_lines(offered))

    def reasons(self, offer: Offer) -> list[str]:
        """Say why the filter may refuse an offer that OpenSSH accepts."""
        found = [name for name, pattern in STRICTER.items() if pattern.search(self.content)]
        odd = not self.principals or any(not name or "," in name for name in self.principals)
        return [*found, *(["principals of the certificate"] if offer is self.certificate and odd else [])]

    def private_key(self, offer: Offer) -> paramiko.PKey | None:
        """Return the key to log in with; None for the kinds that only queries can offer."""
        if offer.key_type == "ssh-ed25519" and offer is self.user:
            return _paramiko_key(self.user_key)
        if offer is self.certificate:
            key = _paramiko_key(self.certified)
            key.load_certificate(f"{offer.key_type} {base64.b64encode(offer.blob).decode()}")
            return key
        return None


def _one_word_each() -> Iterator[Draft]:
    """Make a file for each word of the language: a line with it, above a line that lets the same key in anyway."""
    values = {name: [*usual, *odd] for name, (usual, odd) in VALUES.items()}
    values["command"] += [f"a{piece}b" for piece in PIECES] + list(PIECES)
    words = [f'{name}="{value}"' for name in values for value in values[name]]
    words += [word.replace('"', '\\"').replace('=\\"', '="', 1)[:-2] + '"' for word in words if word.count('"') > 2]
    for word in [*FLAGS, *BROKEN_OPTIONS, *words]:
        for who, prefix in (("user", ""), ("authority", "cert-authority,")):
            above = Line("", prefix + word, " ", who, "plain", "", None)
            below = Line("", f"{prefix}no-x11-forwarding", " ", who, "plain", "", None)
            yield Draft((above, below), "\n", (USER,), (), ("permit-pty", "permit-X11-forwarding"))


@pytest.fixture(scope="module")
def judges(do_without: Callable[[str], None]) -> Iterator[list[Judge]]:
    """Have each version of sshd judge files, this machine's first, in directories that go away."""
    if reason := is_possible():
        do_without(reason)
    # Unset where the tests themselves run in such a tree.
    directory = os.environ.get("DEBIAN_TREES")
    trees = sorted(Path(directory).glob("*/usr/sbin/sshd")) if directory else []
    if directory and not trees:
        do_without(f"no other version of sshd in {directory}: make trees")
    versions: dict[str, Judge] = {}
    for tree in (Path("/"), *(path.parents[2] for path in trees)):
        judge = Judge(tree)
        versions.setdefault(judge.version, judge)
    with ExitStack() as stack:
        yield [stack.enter_context(judge) for judge in versions.values()]


@pytest.fixture(scope="module")
def judge(judges: list[Judge]) -> Judge:
    """Have this machine's sshd judge files."""
    return judges[0]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Make the same files each time, but for KEYLINE_SEED."""
    made: list[Draft] = []

    @hypothesis.seed(SEED)
    @hypothesis.settings(max_examples=FILES, database=None, deadline=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(drafts)
    def collect(draft: Draft) -> None:
        made.append(draft)

    collect()
    return [Case(number, draft) for number, draft in enumerate([*_one_word_each(), *made[:FILES]])]


@dataclass(frozen=True)
class Verdicts:
    """What the versions of OpenSSH say of an offer, each in the same place.

    Attributes:
        case: The file.
        offer: The offered key.
        theirs: The oracle's verdicts, on the file.
        ours: Those on the filter's output.
    """

    case: Case
    offer: Offer
    theirs: tuple[Verdict, ...]
    ours: tuple[Verdict, ...]

    @property
    def told(self) -> str:
        """Name the case in a failure."""
        filtered = self.case.filtered(self.offer, self.case.content)
        return f"case {self.case.number}, {self.offer.key_type}: {self.case.content!r}\n{filtered!r}"


@pytest.fixture(scope="module")
def verdicts(judges: list[Judge], cases: list[Case]) -> list[Verdicts]:
    """Ask all versions about all cases."""
    groups = [cases[at : at + FILES_AT_ONCE] for at in range(0, len(cases), FILES_AT_ONCE)]
    with ThreadPoolExecutor(CONNECTIONS_AT_ONCE) as pool:
        asked = [
            (group, [[pool.submit(ask, judge, group) for judge in judges] for ask in (_ask_oracle, _ask_filter)])
            for group in groups
        ]
        found = []
        for group, (oracle, filtered) in asked:
            theirs, ours = (zip(*(one.result() for one in answers), strict=True) for answers in (oracle, filtered))
            found += [Verdicts(*offer, *both) for offer, *both in zip(_offers(group), theirs, ours, strict=True)]
        return found


@pytest.mark.timeout(600)
def test_nobody_gets_in_whom_openssh_refuses(judges: list[Judge], verdicts: list[Verdicts]) -> None:
    """The filter never turns a no of any version's into a yes, and a yes into a no only for a reason of the list."""
    tally: Counter[str] = Counter()
    versions = [judge.version for judge in judges]
    for each in verdicts:
        assert len({its.accepted for its in each.ours}) == 1, f"versions differ on what the filter prints: {each.told}"
        for (version, theirs), ours in product(zip(versions, each.theirs, strict=True), each.ours):
            told = f"{version}: {each.told}"
            assert theirs.accepted or not ours.accepted, f"OpenSSH refuses, the filter does not: {told}"
            reason = "agreed"
            if theirs.accepted and not ours.accepted:
                reasons = each.case.reasons(each.offer)
                assert reasons, f"stricter than OpenSSH for no known reason: {told}"
                reason = reasons[0]
            tally[f"{reason}, {'yes' if theirs.accepted else 'no'} by OpenSSH"] += 1
            tally[f"{each.offer.key_type}: let in"] += ours.accepted
    print(dict(tally))  # seen with -s
    accepted = tally["agreed, yes by OpenSSH"]
    assert accepted > tally.total() // 20, f"the files let too few in for a comparison: {tally}"
    assert sum(count for name, count in tally.items() if name.startswith(tuple(STRICTER))) < accepted // 5


@pytest.mark.timeout(600)
def test_who_gets_in_has_the_same_options(verdicts: list[Verdicts]) -> None:
    """OpenSSH logs the same options for the filter's line, but for the carrier, which holds the forced command."""
    for each in verdicts:
        for theirs, ours in product(each.theirs, each.ours):
            if theirs.accepted and ours.accepted:
                _compare_options(theirs, ours, each.told)


def _compare_options(theirs: Verdict, ours: Verdict, told: str) -> None:
    rest = [text.replace(" environment", "", 1) for text in ours.options if not text.startswith("environment: ")]
    assert rest == list(theirs.options), told
    forced = {text for text in theirs.options if text.startswith("forced command: ")}
    carried = [text.removeprefix("environment: ") for text in ours.options if text.startswith("environment: ")]
    assert len(carried) == bool(forced), told
    for variable in carried:
        name, _, value = variable.partition("=")
        command = decode_command(value).encode("utf-8", "surrogateescape")
        assert name == "GATEWAY_COMMAND", told
        first_line = f'forced command: "{_as_logged(command)}"'.split("\n")[0]
        assert forced == {first_line}, told


@pytest.mark.timeout(600)
def test_logins_get_the_same(judges: list[Judge], verdicts: list[Verdicts]) -> None:
    """A whole login through the filter runs the same command, with a PTY where OpenSSH gives one, and no variables.

    Remote and gateway have each version in turn.
    """
    chosen = [
        (each.case, each.offer, key)
        for each in verdicts
        if all(its.accepted for its in (*each.theirs, *each.ours)) and (key := each.case.private_key(each.offer))
    ]
    chosen = chosen[:: max(1, len(chosen) // LOGINS)]
    with ThreadPoolExecutor(CONNECTIONS_AT_ONCE // 2) as pool:
        pairs = cycle(product(judges, judges))
        results = list(pool.map(lambda pair, found: _compare_login(*pair, *found), pairs, chosen))
    print(dict(Counter(results)))  # seen with -s
    assert len(results) >= min(LOGINS, FILES // 5), "too few logins for a comparison"
    assert len(set(results)) == 4, "there should be logins with and without a command, with and without a PTY"


@pytest.mark.timeout(600)
def test_what_sshd_knows_by_itself(judge: Judge, verdicts: list[Verdicts]) -> None:
    """With an end to each line, in AuthorizedKeysFile, it lets in whom it lets in without, and nobody after that."""
    # RSA keys are slow to make, and so are in several of the files, which are joined here.
    kinds = ("-cert-", "rsa")
    asked = [
        (each.case, each.offer, each.ours[0])
        for each in verdicts
        if not any(kind in each.offer.key_type for kind in kinds)
    ]
    asked = asked[::3]
    groups = [asked[at : at + FILES_AT_ONCE] for at in range(0, len(asked), FILES_AT_ONCE)]
    now = datetime.now(UTC)

    def accepted(number: int, expires: datetime) -> list[bool]:
        content = b"".join(case.filtered(offer, case.content) for case, offer, _ in groups[number])
        lines = [with_expiry(line, expires) + b"\n" for line in content.split(b"\n")[:-1]]
        file = judge.write(f"known/{expires:%Y%m%dT%H%M%S}/{number}", b"".join(lines))
        offers = [offer for _, offer, _ in groups[number]]
        return [its.accepted for its in judge.query([f"AuthorizedKeysFile {file}"], offers)]

    with ThreadPoolExecutor(CONNECTIONS_AT_ONCE) as pool:
        still, ended = (
            [
                verdict
                for found in pool.map(partial(accepted, expires=now + later), range(len(groups)))
                for verdict in found
            ]
            for later in (timedelta(hours=1), timedelta(seconds=-2))
        )
    assert still == [ours.accepted for *_, ours in asked]
    assert sum(still) > len(asked) / 20
    assert not any(ended)


def test_the_oracle_can_tell(judge: Judge) -> None:
    """The harness itself sees a no, a yes, and a difference in options, so that its silence means something."""
    draft = Draft((Line("", "", " ", "user", "plain", "", None),), "\n", (USER,), (), ())
    case = Case(10_000_019, draft)
    open_file = judge.write("self/open", case.content)
    bound_file = judge.write("self/bound", b'restrict,command="a" ' + case.content)
    yes, no, _ = judge.query([f"AuthorizedKeysFile {open_file}"], case.offers)
    bound, *_ = judge.query([f"AuthorizedKeysFile {bound_file}"], case.offers)
    assert (yes.accepted, no.accepted, bound.accepted) == (True, False, True)
    assert bound.options == ("key options: command", 'forced command: "a"')
    assert yes.options != bound.options


def _offers(group: list[Case]) -> list[tuple[Case, Offer]]:
    return [(case, offer) for case in group for offer in case.offers]


def _ask_oracle(judge: Judge, group: list[Case]) -> list[Verdict]:
    path = judge.write(f"oracle/{group[0].number}", b"\n".join(case.content for case in group))
    return judge.query([f"AuthorizedKeysFile {path}"], [offer for _, offer in _offers(group)])


def _ask_filter(judge: Judge, group: list[Case]) -> list[Verdict]:
    joined = b"\n".join(case.content for case in group)
    name = f"filtered/{group[0].number}"
    for case, offer in _offers(group):
        judge.write(f"{name}/{offer.fingerprint}", case.filtered(offer, joined))
    command = f"AuthorizedKeysCommand /usr/bin/cat {judge.home}/{name}/%f"
    return judge.query([*FILTERED, command], [offer for _, offer in _offers(group)])


def _compare_login(remote: Judge, gateway: Judge, case: Case, offer: Offer, key: paramiko.PKey) -> str:
    name = f"login/{case.number}-{offer.key_type}"
    file = remote.write(f"{name}-file", case.content)
    lines = gateway.write(f"{name}-lines", case.filtered(offer, case.content))
    theirs = remote.login([f"AuthorizedKeysFile {file}"], key)
    command = f"AuthorizedKeysCommand /usr/bin/cat {lines}"
    ours = gateway.login([*FILTERED, command, "ForceCommand the-session-helper"], key)
    told = f"case {case.number}, {offer.key_type}: {case.content!r}: {theirs} {ours}"
    assert ours.command == b"the-session-helper", told
    assert ours.original == "probe", told
    is_bound = ours.carried != "unset"
    effective = decode_command(ours.carried).encode("utf-8", "surrogateescape") if is_bound else b"probe"
    assert effective == theirs.command, told
    assert (theirs.original == "probe") == is_bound, told
    assert ours.pty == theirs.pty, told
    more = {"SSH_ORIGINAL_COMMAND"} | ({"GATEWAY_COMMAND"} if is_bound else set())
    assert ours.variables - more == theirs.variables - more, told
    return f"{'a command' if is_bound else 'no command'}, {'a PTY' if ours.pty else 'no PTY'}"


def _as_logged(command: bytes) -> str:
    """Write a command as sshd does in its log (log.c: strnvis with VIS_SAFE and VIS_OCTAL)."""
    kept = b"\b\a\r\n\t "
    return "".join(
        "\\\\" if byte == ord("\\") else chr(byte) if byte in kept or 0x20 < byte < 0x7F else f"\\{byte:03o}"
        for byte in command
    )


def _shaped(blob: bytes, shape: str, gap: bytes) -> bytes:
    kind, text = _type_of(blob).encode(), base64.b64encode(blob)
    aliases = {
        b"ssh-rsa": b"rsa-sha2-512",
        b"sk-ecdsa-sha2-nistp256@openssh.com": b"webauthn-sk-ecdsa-sha2-nistp256@openssh.com",
    }
    short = {b"ssh-ed25519": b"Ed25519", b"ssh-rsa": b"RSA", b"sk-ssh-ed25519@openssh.com": b"ED25519-SK"}
    if shape == "alias" and kind in short:
        # OpenSSH finds a key's type by any of these names, inside of the blob or before it.
        text = base64.b64encode(_string(short[kind]) + blob[4 + len(kind) :])
    shapes = {
        "cut": text[:-5],
        "unpadded": text.rstrip(b"="),
        "cr": text[:20] + b"\r" + text[20:],
        "vt": text + b"\x0b",
        "split": text[:20] + b" " + text[20:],
        "comment glued": text + b"#x",
        "twice": text + gap + text,
    }
    if shape == "typeless":
        return text
    if shape == "wrong type":
        kind = b"ssh-rsa" if kind != b"ssh-rsa" else b"ssh-ed25519"
    if shape == "alias":
        kind = aliases.get(kind, kind)
    return kind + gap + shapes.get(shape, text)


def _user_offer(number: int, key: ed25519.Ed25519PrivateKey) -> Offer:
    """Choose the kind of the user's key: mostly Ed25519, and each of the others now and then."""
    blob, algorithm = _blob(key), "ssh-ed25519"
    kind = number % 12
    if kind == 6:
        blob, algorithm = _blob(_RSA_KEYS[number // 12 % len(_RSA_KEYS)]), "rsa-sha2-512"
    elif kind in {7, 8, 9}:
        blob = _blob(_ecdsa(number, (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())[kind - 7]))
        algorithm = _type_of(blob)
    elif kind == 10:
        algorithm = "sk-ssh-ed25519@openssh.com"
        blob = _text(algorithm) + blob[len(_text("ssh-ed25519")) :] + _text("ssh:")
    elif kind == 11:
        algorithm = "sk-ecdsa-sha2-nistp256@openssh.com"
        blob = _text(algorithm) + _blob(_ecdsa(number))[len(_text("ecdsa-sha2-nistp256")) :] + _text("ssh:")
    return Offer(algorithm, _type_of(blob), blob, blob)


def _ed25519(name: str) -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def _ecdsa(number: int, curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(number + 2, curve or ec.SECP256R1())


def _sign(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return _text("ssh-ed25519") + _string(key.sign(data))
    numbers = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    signature = b"".join(_string(number.to_bytes(33, "big").lstrip(b"\0").rjust(33, b"\0")) for number in numbers)
    return _text("ecdsa-sha2-nistp256") + _string(signature)


def _blob(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return base64.b64decode(key.public_key().public_bytes(*form).split()[1])


def _paramiko_key(key: ed25519.Ed25519PrivateKey) -> paramiko.PKey:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    return paramiko.Ed25519Key.from_private_key(io.StringIO(key.private_bytes(*form).decode()))


def _type_of(blob: bytes) -> str:
    return blob[4 : 4 + blob[3]].decode()


def _string(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


def _text(text: str) -> bytes:
    return _string(text.encode())


_RSA_KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(5)]

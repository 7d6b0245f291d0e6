"""GATEWAY_PASSWORDS: what is taken, what is refused, and that no text of a password is left."""

from __future__ import annotations

import subprocess

import pytest

from gatewayctl.settings.passwords import doubtful, hash_password, hashed_passwords, pairs, placeholder_hashes_for
from helpers.protocol.errors import SettingsError

_BCRYPT = "$2b$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"
_YESCRYPT = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"

_MORE = [
    "$6$rounds=5000$abcdefgh$" + "a" * 86,
    "$6$abcdefgh$" + "b" * 86,
    "$5$abcdefgh$" + "c" * 43,
    "$7$CU..../....abcdefgh$" + "d" * 43,
    _BCRYPT.replace("$2b$", "$2a$"),
]


def _accepts(hashed: str, password: str) -> bool:
    """Ask the machine's own crypt(3), which is what sshd asks."""
    argv = ["perl", "-e", "print crypt($ARGV[0], $ARGV[1])", "--", password, hashed]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout == hashed


def test_passwords_are_hashed_at_once() -> None:
    """The crypt of the machine accepts the password and no other; the text is nowhere in the result."""
    hashed = hashed_passwords("alice:s3cr3t,bob:pass")
    assert list(hashed) == ["alice", "bob"]
    assert _accepts(hashed["alice"], "s3cr3t")
    assert not _accepts(hashed["alice"], "pass")
    assert "s3cr3t" not in str(hashed)


def test_equal_passwords_do_not_look_equal() -> None:
    """Each has a salt of its own."""
    hashed = hashed_passwords("alice:same,bob:same")
    assert hashed["alice"] != hashed["bob"]


@pytest.mark.parametrize("given", [_BCRYPT, _YESCRYPT, *_MORE])
def test_a_hashed_password_is_taken_as_it_is(given: str) -> None:
    """Whoever wants no text in a settings file, or a comma in a password, gives the hash."""
    assert hashed_passwords(f"alice:{given},bob:x")["alice"] == given


@pytest.mark.parametrize("between", ["\n", "\r\n", "\n\n", ",", ",\n", "\n  ", " \n"])
def test_pairs_stand_on_lines_or_commas_apart(between: str) -> None:
    """A list is taken as people write it, in a YAML block, in a file or in one line."""
    text = between.join(["alice:a-b", f"bob:{_BCRYPT}", "carol:c"])
    for whole in (text, f"{text}\n", f"\n{text}\n\n"):
        assert dict(pairs(whole)) == {"alice": "a-b", "bob": _BCRYPT, "carol": "c"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "pair 1 is wrong"),
        ("alice", "pair 1 is wrong: it must be NAME:PASSWORD"),
        (":x", "pair 1 is wrong"),
        ("a b:x", "pair 1 is wrong"),
        ("root:x", "a name that can log in"),
        ("sshd:x", "a name that can log in"),
        ("alice:", "the password of alice cannot be used"),
        ("alice:x,alice:y", "alice has one already"),
        ("alice:a:b", "must be given hashed"),
        ("alice:a,b", "must be given hashed"),
        ("alice:" + "x" * 73, "1 to 72 bytes"),
        ("alice:a\0b", "cannot be used"),
        ("alice:" + "\udcff" * 3, "1 to 72 bytes of UTF-8"),
        (f"alice:{_BCRYPT[:-1]}", "it looks hashed, and is cut short"),
        (f"alice:{_BCRYPT}x", "it looks hashed"),
        (f"alice:{_YESCRYPT},bob:$1$salt$qJH7.N4xYta3aEG/dfqo/0", "pair 2 is wrong: it looks hashed"),
        ("alice:$argon2id$v=19$m=65536", "it looks hashed"),
        ("alice:b2", "what a shell leaves of a hash in double quotes"),
        ("alice:b0", "what a shell leaves of a hash in double quotes"),
        ("alice:y2/bcdefGHIJ.klm", "what a shell leaves of a hash in double quotes"),
        ("alice:b2$./cdefgh", "what a shell leaves of a hash in double quotes"),
        ("alice:/defghIJKLM", "what a shell leaves of a hash in double quotes"),
        ("alice:.ghi/jklmNOP$qrs", "what a shell leaves of a hash in double quotes"),
        ("alice:/", "what a shell leaves of a hash in double quotes"),
        ("alice:=5000", "what a shell leaves of a hash in double quotes"),
        ("alice:=5000/abc", "what a shell leaves of a hash in double quotes"),
        ("alice:x\nbob", "a name that can log in; pairs stand on lines or commas apart"),
        ("alice:x bob:y", "must be given hashed"),
        (f"alice:{_BCRYPT.replace('$', '$$')}", "each $ twice, as compose files want it"),
        (f"bob:x\nalice:{_YESCRYPT.replace('$', '$$')}", "pair 2 is wrong: its hash has each"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    """One line says which pair, and what would be right; the password is not in it."""
    with pytest.raises(SettingsError) as caught:
        list(pairs(text))  # which is all that check-config does
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert "x" * 73 not in caught.value.message


def test_nobody_knows_the_unknown_passwords() -> None:
    """Each is of the kind and cost of one that somebody has, and what that one's owner knows does not open it."""
    known = [_BCRYPT, _YESCRYPT, *_MORE, *hashed_passwords("alice:s3cr3t").values()]
    unknown = placeholder_hashes_for(known)
    assert not set(known) & set(unknown)
    for mine, theirs in zip(known, unknown, strict=True):
        digest = 31 if mine.startswith("$2") else len(mine.rpartition("$")[2])
        assert (theirs[:-digest], len(theirs)) == (mine[:-digest], len(mine))
    assert not any(_accepts(text, "s3cr3t") for text in unknown)
    assert _accepts(known[-1], "s3cr3t")
    assert placeholder_hashes_for([]) == []


def test_hash_password_makes_what_is_taken() -> None:
    """The command's output goes into the setting."""
    hashed = hash_password("with,comma:and colon")
    assert hashed_passwords(f"alice:{hashed}") == {"alice": hashed}


@pytest.mark.parametrize("salt", ["9aaaaaaaaaaaaaaaaaaaaa", "7bcdefghijklmnopqrstuv"])
def test_the_rest_of_a_hash_that_may_be_a_password_is_doubtful(salt: str) -> None:
    """A shell takes the salt's first digit alone; what it leaves is warned of, and a short password is not."""
    left = subprocess.run(
        ["sh", "-c", f'printf %s "$2b$12${salt}{"x" * 31}"'], capture_output=True, text=True, check=True
    ).stdout
    assert left == f"b2{salt[1:]}{'x' * 31}"
    assert doubtful(f"alice:{left}\nbob:correct-horse-battery-staple\ncarol:s3cret") == ["alice"]

"""Reads a user's authorized_keys on the remote, and accepts the files that the remote's own sshd would accept.

A single command reads everything. It lists the owner and the mode of each file and of each directory above it, which
sshd's StrictModes checks, and the files' lengths, which delimit their content from other output. The lists are
evaluated here and not on the remote, since shells and ls(1) differ.

Source: sshd_config(5), AuthorizedKeysFile, AuthorizedKeysCommand, StrictModes and TOKENS; OpenSSH 9.2 misc.c
(safe_path), auth.c (expand_authorized_keys), auth2-pubkey.c (user_key_allowed).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from helpers.broker.keys.key_index import MAX_CONTENT_BYTES
from helpers.protocol.errors import RemoteLostError
from helpers.remote_command import marked, printable, why_not_run

MAX_OUTPUT_BYTES = MAX_CONTENT_BYTES + 64 * 1024
"""Most output, in bytes, that is read: the files, the lists, and the output of start-up files."""

DEFAULT_FILES = (".ssh/authorized_keys", ".ssh/authorized_keys2")
"""sshd's own default of AuthorizedKeysFile (sshd_config(5))."""

MAX_LINKS = 40
"""Longest chain of symbolic links that is followed, as on Linux (path_resolution(7))."""

_BEGIN = (
    "PATH=${PATH-}:/usr/bin:/bin; LC_ALL=C; export LC_ALL; unset BLOCK_SIZE LS_BLOCK_SIZE;"
    ' gw_id=$(id -u); echo; echo "$gw_mark" uid $gw_id;'
    " gw_name=@USER; gw_home=@HOME; gw_top=;"
    ' if cd -P "$gw_home" 2>/dev/null; then gw_top=${PWD-}; fi;'
    # Follows the file's own links, lets the shell resolve those of its directory, and lists each directory up to the
    # home or, if the file is not below it, up to the root.
    ' gw_read() { gw_file=$1; gw_links=0; while test -L "$gw_file" && test $gw_links -lt @LINKS; do'
    ' gw_to=$(readlink "$gw_file") || break;'
    " case $gw_to in /*) gw_file=$gw_to;; *) gw_file=${gw_file%/*}/$gw_to;; esac;"
    " gw_links=$((gw_links+1)); done;"
    ' if test -f "$gw_file" && test -r "$gw_file" && cd -P "${gw_file%/*}/"; then'
    ' set -- "${PWD-}/${gw_file##*/}" "${PWD-}";'
    ' until test "${PWD-}" = "$gw_top" || test "${PWD-}" = /; do cd -P .. || exit; set -- "$@" "${PWD-}"; done;'
    ' gw_list=$(ls -ldn "$@") || exit; echo "$gw_mark" file $#; printf %s "$gw_list"; echo;'
    # The group's members are needed only if a group may write.
    " for gw_word in $gw_list; do case $gw_word in [-d]????w????*) gw_group; break;; esac; done;"
    ' echo "$gw_mark" content; cat "$1"; echo;'
    ' elif test -e "$gw_file"; then echo "$gw_mark" unreadable; else echo "$gw_mark" absent; fi; };'
    # Names of the users whose primary group it is, then of the members that the group lists.
    " gw_group() { gw_gid=$(id -g); echo $gw_mark group $gw_gid"
    ' $(getent passwd | grep "^[^:]*:[^:]*:[^:]*:$gw_gid:" | head -n 3 | cut -d: -f1)'
    " / $(getent group $gw_gid | cut -d: -f4); };"
)
# ``${PWD-}`` is $PWD in sh. xonsh, which would substitute its own value for $PWD, leaves it alone.
_COMMAND = (
    " cd /; if gw_out=$(@COMMAND </dev/null 2>/dev/null); then"
    ' echo "$gw_mark" command ${#gw_out}; printf %s "$gw_out"; echo; else echo "$gw_mark" failed $?; fi;'
)
_END = ' echo "$gw_mark" end'

_LISTED = re.compile(
    rb"(?P<kind>[-a-z])[-r][-w].[-r](?P<group>[-w]).[-r](?P<others>[-w])\S*\s+\d+"
    rb"\s+(?P<uid>\d{1,18})\s+(?P<gid>\d{1,18})\s+(?P<size>\d{1,18})\s.*"
)
"""A line of ``ls -ldn`` (POSIX ls(1)); a sign may follow the mode, as for an ACL."""

_NUMBER = re.compile(r"[0-9]{1,18}")  # Python refuses to read thousands of digits (sys.set_int_max_str_digits)


@dataclass(frozen=True)
class AuthorizedKeys:
    """A user's authorized_keys.

    Attributes:
        content: All accepted files, concatenated, and then the command's output.
        problems: Why a file, or everything, is ignored; one sentence each, in the order of the files.
    """

    content: bytes
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class AuthorizedKeysSources:
    """The locations of users' keys on the remote.

    Attributes:
        files: REMOTE_AUTHORIZED_KEYS_FILE: paths, absolute or below the home, with the tokens %u, %h and %%.
        command: REMOTE_AUTHORIZED_KEYS_COMMAND: an absolute path and its arguments, with the same tokens; "" for none.
    """

    files: tuple[str, ...] = DEFAULT_FILES
    command: str = ""

    def command_line(self, user: str) -> str:
        """Write the command line that reads a user's keys; see `helpers.remote_command.marked`.

        Args:
            user: A valid user name.
        """
        # Not $HOME, which a start-up file may have changed; except that ~-0 is in the directory stack (bash(1)).
        home = "${HOME-}" if user.startswith("-") else f"~{user}"
        begin = _BEGIN.replace("@LINKS", str(MAX_LINKS)).replace("@USER", user).replace("@HOME", home)
        reads = "".join(f' gw_read "{_absolute(path)}";' for path in self.files)
        command = _COMMAND.replace("@COMMAND", _expand(self.command)) if self.command else ""
        return marked(begin + reads + command + _END)

    def parse(self, user: str, output: bytes, marker: bytes, status: int | None) -> AuthorizedKeys:
        """Parse the command's output.

        Args:
            user: The owner of the keys.
            output: The command's standard output.
            marker: The command's marker.
            status: The command's exit status; None if the remote sent none.

        Raises:
            RemoteLostError: The output is incomplete, or mixed with that of another program.
        """
        answer = _Answer(output, marker, user)
        return self._read(answer) if answer.begins else AuthorizedKeys(b"", (why_not_run(status, output),))

    def _read(self, answer: _Answer) -> AuthorizedKeys:
        contents: list[bytes] = []
        problems: list[str] = []
        uid = answer.number("uid")
        for path in self.files:
            try:
                if (content := answer.file(uid)) is not None:
                    contents.append(content)
            except _IgnoredFileError as exc:
                problems.append(f"{path} on the remote host does not count: {exc}")
        if self.command:
            try:
                contents.append(answer.command_output())
            except _IgnoredFileError as exc:
                problems.append(f"{self.command.split()[0]} on the remote host does not count: {exc}")
        answer.end()
        content = b"\n".join(contents)
        if len(content) > MAX_CONTENT_BYTES:
            return AuthorizedKeys(b"", (*problems, f"authorized_keys is larger than {MAX_CONTENT_BYTES} bytes"))
        return AuthorizedKeys(content, tuple(problems))


class _IgnoredFileError(Exception):
    """sshd would ignore this file; the text is the reason."""


class _Answer:
    """Parses the command's output from the beginning to the end."""

    def __init__(self, output: bytes, marker: bytes, user: str) -> None:
        self._output, self._marker, self._user = output, b"\n" + marker + b" ", user
        self._at = output.find(self._marker)

    @property
    def begins(self) -> bool:
        return self._at >= 0

    def _line(self) -> bytes:
        """Take the rest of a line."""
        end = self._output.find(b"\n", self._at)
        if end < 0:
            raise _incomplete()
        # The newline is not consumed: the next marker begins with it.
        line, self._at = self._output[self._at : end], end
        return line

    def _words(self) -> list[str]:
        """Take a marked line, which must come next."""
        if not self._output.startswith(self._marker, self._at):
            raise _incomplete()
        self._at += len(self._marker)
        return self._line().decode("ascii", "replace").split(" ")

    def _bytes(self, count: int) -> bytes:
        """Take so many bytes and the newline that must follow."""
        start = self._at + 1
        content = self._output[start : start + count]
        self._at = start + count
        if len(content) < count or not self._output.startswith(self._marker, self._at):
            raise _incomplete()
        return content

    def number(self, name: str) -> int:
        """Take a marked line with a name and a number."""
        words = self._words()
        if len(words) != 2 or words[0] != name:  # noqa: PLR2004 - the two
            raise _incomplete()
        return _number(words[1])

    def file(self, uid: int) -> bytes | None:
        """Take a file; None if there is none.

        Raises:
            _IgnoredFileError: sshd would ignore it.
        """
        words = self._words()
        if words == ["absent"]:
            return None
        if words == ["unreadable"]:
            raise _IgnoredFileError("it cannot be read, or is no regular file")
        if words[0] != "file" or len(words) != 2:  # noqa: PLR2004 - the two
            raise _incomplete()
        listed = [self._listed() for _ in range(_number(words[1]))]
        files = [entry for entry in listed if entry["kind"] == b"-"]
        words = self._words()
        private_gid = None
        if words[0] == "group":
            private_gid, words = _private_gid(words, self._user), self._words()
        if words != ["content"] or len(files) != 1:
            raise _incomplete()
        content = self._bytes(int(files[0]["size"]))
        for entry in listed:
            _check_strict_modes(entry, uid, private_gid)
        return content

    def _listed(self) -> re.Match[bytes]:
        self._at += 1
        match = _LISTED.fullmatch(self._line())
        if match is None:
            raise _incomplete()
        return match

    def command_output(self) -> bytes:
        """Take the output of the command.

        Raises:
            _IgnoredFileError: The command failed: sshd then discards its output.
        """
        words = self._words()
        if words[0] == "failed":
            raise _IgnoredFileError(f"it ended with status {printable(words[-1].encode())}")
        if words[0] != "command" or len(words) != 2:  # noqa: PLR2004 - the two
            raise _incomplete()
        return self._bytes(_number(words[1]))

    def end(self) -> None:
        if self._words() != ["end"]:
            raise _incomplete()


def _private_gid(words: list[str], user: str) -> int | None:
    """Return the gid of the user's primary group if the user is its only member, else None.

    Args:
        words: ``group``, the gid, the names of the users whose primary group it is, ``/``, and the listed members.
        user: The user's name.
    """
    is_private = words[2:] in ([user, "/"], [user, "/", user], [user, "/", ""])
    return int(words[1]) if is_private and _NUMBER.fullmatch(words[1]) else None


def _check_strict_modes(entry: re.Match[bytes], uid: int, private_gid: int | None) -> None:
    """Check a file or directory as safe_path does: root or the user must own it, and no other user may write to it.

    Debian's sshd, with its umask for private groups, accepts write permission for a group whose only member is the
    user; on other systems such a group is as safe (openssh, debian/patches/user-group-modes.patch).
    """
    group_may_write = entry["group"] == b"w" and int(entry["gid"]) != private_gid
    if int(entry["uid"]) in {0, uid} and not group_may_write and entry["others"] != b"w":
        return
    kind = "file" if entry["kind"] == b"-" else "directory"
    path = printable(entry[0][entry[0].find(b" /") + 1 :])
    raise _IgnoredFileError(f"bad ownership or modes for {kind} {path} (StrictModes)")


def _number(word: str) -> int:
    if not _NUMBER.fullmatch(word):
        raise _incomplete()
    return int(word)


def _absolute(path: str) -> str:
    """Return an absolute path for use between double quotes in sh."""
    expanded = _expand(path)
    return expanded if expanded.startswith(("/", "${gw_home}")) else f"${{gw_home}}/{expanded}"


def _expand(text: str) -> str:
    """Replace sshd's tokens by shell variables, in the checked value of a setting."""
    # In braces, so that letters after a token do not become part of the variable's name.
    values = {"%%": "%", "%u": "${gw_name}", "%h": "${gw_home}"}
    return re.sub("%.", lambda token: values[token[0]], text)


def _incomplete() -> RemoteLostError:
    return RemoteLostError("authorized_keys was cut short on the remote host, or other text came between")

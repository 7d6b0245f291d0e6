"""The sources of settings: flags, environment variables, a YAML file. Each value keeps its origin."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.protocol.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from typing import BinaryIO

    import yaml

# Larger than any configuration, and small enough to be read before it is validated.
MAX_CONFIG_BYTES = 1_048_576

# SETTING_FILE names a file with the setting's value.
FILE_SUFFIX = "_FILE"

_OURS = re.compile(r"(?:GATEWAY|REMOTE)_[A-Z0-9_]+", re.ASCII)
# Kubernetes and Docker links describe a Service called "gateway" or "remote" in such variables.
_SERVICE_LINK = re.compile(r"(?:GATEWAY|REMOTE)_(?:SERVICE_(?:HOST|PORT)|PORT_[0-9]+_).*", re.ASCII)


@dataclass(frozen=True)
class SettingValue:
    """A setting's value as it was given.

    Attributes:
        text: The value, not validated yet.
        origin: Its source, for messages: ``environment REMOTE_PORT``.
        hidden: Whether no error may quote it: a wrong path may lead to a secret.
        file: The file with the value; None for another source.
    """

    text: str
    origin: str
    hidden: bool = False
    file: Path | None = None


def from_flags(flags: Mapping[str, object]) -> dict[str, SettingValue]:
    """Take the flags that were given; None means that a flag was not.

    Args:
        flags: Setting name in lower case to value.
    """
    return {
        name: SettingValue(str(value).lower() if isinstance(value, bool) else str(value), flag_of(name))
        for name, value in flags.items()
        if value is not None
    }


def flag_of(name: str) -> str:
    """Spell a setting's name as a command-line flag."""
    return "--" + name.lower().replace("_", "-")


def from_environment(environ: Mapping[str, str], names: Collection[str]) -> dict[str, SettingValue]:
    """Take the variables that are settings, and the files that variables of the form SETTING_FILE name.

    Container engines pass secrets as files. An empty variable counts as not set.

    Raises:
        SettingsError: A file cannot be read, or a setting is given both ways.
    """
    given = {}
    for name in names:
        key = name.upper()
        if value := environ.get(key):
            given[name] = SettingValue(value, f"environment {key}")
        if path := environ.get(key + FILE_SUFFIX):
            if name in given:
                raise SettingsError(f"{key} and {key}{FILE_SUFFIX} exclude each other: give one")
            text = _content(path, key + FILE_SUFFIX)
            given[name] = SettingValue(text, f"{path}, environment {key}{FILE_SUFFIX}", hidden=True, file=Path(path))
    return given


def _content(path: str, variable: str) -> str:
    """Read a setting's file; the newline at its end is not part of the value."""
    try:
        with _opened(Path(path)) as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise SettingsError(f"{variable}: {path} is larger than {MAX_CONFIG_BYTES} bytes")
        value = text.decode("utf-8").rstrip("\r\n")
    except OSError as exc:
        raise SettingsError(f"{variable}: {path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise SettingsError(f"{variable}: {path} is not UTF-8 text") from None
    if not value:
        raise SettingsError(f"{variable}: {path} is empty")
    return value


def is_inherited_descriptor(path: Path) -> bool:
    """Check whether a path is an open descriptor of this process, as from a shell's <(command)."""
    return Path(os.path.realpath(path)).is_relative_to("/proc")


def _opened(path: Path) -> BinaryIO:
    """Open a file for reading, without blocking on a pipe that has no writer.

    Raises:
        OSError: It cannot be opened, or is neither a file nor an inherited descriptor.
    """
    if is_inherited_descriptor(path):
        return path.open("rb")
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - returned
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a file")
    return file


def check_text(given: Mapping[str, SettingValue]) -> None:
    """Check that values are UTF-8: others cannot be passed on to the broker or to sshd.

    Raises:
        SettingsError: A value is not UTF-8; it is not quoted.
    """
    for name, value in given.items():
        try:
            value.text.encode("utf-8")
        except UnicodeEncodeError:
            raise SettingsError(f"{name.upper()} is not UTF-8 text (from {value.origin})") from None


def unknown_variables(environ: Mapping[str, str], names: Collection[str]) -> tuple[str, ...]:
    """List warnings for variables that look like settings but are not.

    They are not errors: orchestrators set their own variables with the same prefixes.
    """
    upper = [name.upper() for name in names]
    return tuple(
        f"environment {key} is not a setting and is ignored{did_you_mean(key, upper)}"
        for key in sorted(environ)
        if not {key, key.removesuffix(FILE_SUFFIX)} & {*upper}
        and _OURS.fullmatch(key)
        and not _SERVICE_LINK.fullmatch(key)
    )


def from_yaml(path: Path, names: Collection[str]) -> dict[str, SettingValue]:
    """Read a YAML file: one mapping of setting names, in lower or upper case, to single values.

    Only the document's structure is used, so that each value is the text in the file (``0600`` stays ``0600``, ``no``
    stays ``no``), no objects are constructed from it, and each value has a line number.

    Raises:
        SettingsError: The file cannot be read, is not such a mapping, or has a key that is not a setting.
    """
    import yaml  # noqa: PLC0415 - only needed for a file

    root = _compose(path)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError(f"{path}: it must hold lines of the form remote_host: shell.example.org")
    given: dict[str, SettingValue] = {}
    for key_node, value_node in root.value:
        line = key_node.start_mark.line + 1
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
        name = key.lower()
        origin = f"{path} line {line}: {key}"
        if name not in names or key not in {name, name.upper()}:
            raise SettingsError(f"{path} line {line}: {shown(key)} is not a setting{did_you_mean(name, names)}")
        if name in given:
            raise SettingsError(f"{path} line {line}: {name} is given twice ({given[name].origin})")
        if not isinstance(value_node, yaml.ScalarNode):
            raise SettingsError(f"{name.upper()} must be a single value, not a list or mapping (from {origin})")
        if value_node.value and value_node.tag != "tag:yaml.org,2002:null":
            given[name] = SettingValue(str(value_node.value), origin, file=path)
    return given


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown word: the nearest known one, if there is one."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def shown(text: str) -> str:
    """Quote a value for an error, shortened to one line and without terminal control characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")  # noqa: PLR2004 - fits on a line


def _compose(path: Path) -> yaml.Node | None:
    import yaml  # noqa: PLC0415 - see above

    try:
        with _opened(path) as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as exc:
        raise SettingsError(f"{path}: cannot be read: {exc.strerror}") from exc
    if len(text) > MAX_CONFIG_BYTES:
        raise SettingsError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes, so not a configuration")
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:  # its own text would quote the line, which may contain a secret
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise SettingsError(f"{path} line {line}: not YAML; special characters in a value need quotes") from None
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError):  # "\\U00110000" is not a character
        raise SettingsError(f"{path}: not YAML") from None

"""What a setting's definition says beside its type, and how a value that does not fit is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, SecretStr

from gatewayctl.settings import sources
from helpers.protocol.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from gatewayctl.settings.sources import Given


@dataclass(frozen=True)
class Doc:
    """What people are told about a setting.

    Attributes:
        about: What it does, one sentence without its full stop.
        expects: What would be right, to stand behind "must be".
        example: A value that is right and is not the default.
        unit: What the value counts, or is, in one word: the flag's placeholder.
        default: The default in words, where the value itself does not say it.
    """

    about: str
    expects: str
    example: str
    unit: str
    default: str = ""


@dataclass(frozen=True)
class SettingInfo:
    """A setting's definition, for whoever documents it or makes a flag of it.

    Attributes:
        name: The attribute and YAML key, ``remote_port``.
        doc: What people are told about it.
        default: The default as text, "" if there is none.
        boolean: Whether it is either true or false.
        secret: Whether it must never be shown, nor given on a command line.
        required: Whether there must be a value.
    """

    name: str
    doc: Doc
    default: str
    boolean: bool
    secret: bool
    required: bool

    @property
    def variable(self) -> str:
        """The environment variable, which is also what the setting is called: ``REMOTE_PORT``."""
        return self.name.upper()

    @property
    def flag(self) -> str:
        """The command-line flag, ``--remote-port``, or "" for a secret, since everyone can read argv."""
        return "" if self.secret else sources.flag_of(self.name)


def describe(model: type[BaseModel]) -> Iterator[SettingInfo]:
    """List every setting of a model in the order of its definition."""
    for name, field in model.model_fields.items():
        doc = next(item for item in field.metadata if isinstance(item, Doc))
        yield SettingInfo(
            name=name,
            doc=doc,
            default=doc.default or _default(field),
            boolean=field.annotation is bool,
            secret=_holds_secret(field.annotation),
            required=field.is_required(),
        )


def setting_error(error: ErrorDetails, model: type[BaseModel], given: Mapping[str, Given]) -> SettingsError:
    """Put a validation error into one line: the setting, what would be right, where it came from.

    Args:
        error: One of pydantic's errors; its own text is not used, because it repeats the value.
        model: The model that was validated.
        given: Setting name to what was given.
    """
    name = str(error["loc"][0])
    info = next(info for info in describe(model) if info.name == name)
    if name not in given:
        return SettingsError(f"{info.variable} is missing: set it, for example {info.variable}={info.doc.example}")
    seen = "" if info.secret or given[name].hidden else f", not {sources.shown(given[name].text)}"
    hint = str(error.get("ctx", {}).get("error", ""))
    hint = f"; {hint}" if hint and error["type"] == "value_error" else ""
    return SettingsError(f"{info.variable} must be {info.doc.expects}{seen}{hint} (from {given[name].origin})")


def _holds_secret(annotation: object) -> bool:
    """Look for SecretStr anywhere in a type: what is optional, or has a check on it, is no less secret."""
    return annotation is SecretStr or any(_holds_secret(part) for part in get_args(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default is None:
        return ""
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)

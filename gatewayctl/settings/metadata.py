"""The documentation in a setting's definition, and the error for an invalid value."""

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

    from gatewayctl.settings.sources import SettingValue


@dataclass(frozen=True)
class Doc:
    """A setting's documentation.

    Attributes:
        about: Its effect, one sentence without its full stop.
        expects: The valid values, in words that can follow "must be".
        example: A valid value other than the default.
        unit: The value's unit or kind, in one word: the flag's placeholder.
        default: The default in words, if the value itself is not clear.
    """

    about: str
    expects: str
    example: str
    unit: str
    default: str = ""


@dataclass(frozen=True)
class SettingInfo:
    """A setting's definition, from which its documentation and its flag are made.

    Attributes:
        name: The attribute and YAML key, ``remote_port``.
        doc: Its documentation.
        default: The default as text, "" if there is none.
        boolean: Whether it is either true or false.
        secret: Whether it must never be shown, nor given on a command line.
        required: Whether it must have a value.
    """

    name: str
    doc: Doc
    default: str
    boolean: bool
    secret: bool
    required: bool

    @property
    def variable(self) -> str:
        """The environment variable, which is also the setting's name: ``REMOTE_PORT``."""
        return self.name.upper()

    @property
    def flag(self) -> str:
        """The command-line flag, ``--remote-port``, or "" for a secret, since any user can read argv."""
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


def setting_error(error: ErrorDetails, model: type[BaseModel], given: Mapping[str, SettingValue]) -> SettingsError:
    """Format a validation error as one line: the setting, the valid values, its source.

    Args:
        error: One of pydantic's errors; its own text is not used, because it repeats the value.
        model: The model that was validated.
        given: Setting name to the given value.
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
    """Check whether a type contains SecretStr, also within an optional or annotated type."""
    return annotation is SecretStr or any(_holds_secret(part) for part in get_args(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default is None:
        return ""
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)

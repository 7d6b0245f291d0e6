"""JSON by the standard library's C code, without its package ``json``.

The package imports re and enum, for features that are not used here: 4 ms of a helper's start (Python 3.11).
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

_BLANK = " \t\r\n"
"""White space (RFC 8259, section 2)."""


def dumps(value: object) -> str:
    """Encode a value as one line of ASCII.

    Raises:
        ValueError: JSON cannot represent the value.
    """
    return "".join(_encode(value, 0))


def loads(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """Decode one value.

    Raises:
        ValueError: The text is not one JSON value.
        RecursionError: The value is nested too deeply.
    """
    text = text.strip(_BLANK)
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        end = 0
    if not 0 < end == len(text):
        _refuse(text[end:])
    return value


def _refuse(what: object) -> NoReturn:
    msg = f"not JSON: {what!r:.40}"
    raise ValueError(msg)


class _Context:
    """The scanner's settings of ``json.JSONDecoder``, except for NaN and Infinity, which are not JSON."""

    strict = True
    object_hook = object_pairs_hook = array_hook = None
    parse_float, parse_int, parse_constant = float, int, _refuse


_encode: Callable[[object, int], Iterable[str]]
_scan: Callable[[str, int], tuple[Any, int]]
try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    _encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False)  # noqa: FBT003
    _scan = make_scanner(_Context)  # type: ignore[arg-type]
except (ImportError, TypeError):  # in another version of Python
    from json import JSONDecoder, JSONEncoder

    _encode = JSONEncoder(separators=(",", ":"), default=_refuse, allow_nan=False).iterencode  # type: ignore[assignment]
    _scan = JSONDecoder(parse_constant=_refuse).scan_once  # type: ignore[attr-defined]

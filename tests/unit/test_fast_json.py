"""JSON without json: it writes and reads what json does, by the C code and without it."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.protocol import fast_json

if TYPE_CHECKING:
    from types import ModuleType


def _without_c() -> ModuleType:
    """Load the module as a Python has it whose json has no C code."""
    spec = importlib.util.spec_from_file_location("another_json_text", fast_json.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "_json", None)
        spec.loader.exec_module(module)
    assert type(module._encode) is not type(fast_json._encode)
    return module


_BOTH = pytest.mark.parametrize("ours", [fast_json, _without_c()], ids=["C", "Python"])
_TEXT = st.text() | st.text(st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF)) | st.text('"\\\0\n\x7f\u2028/')
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=15,
)


def _reads(loads: Any, text: str) -> Any:
    try:
        return repr(loads(text))
    except (ValueError, RecursionError):
        return None


@_BOTH
@given(value=_VALUES)
def test_what_is_written_is_what_json_writes(ours: ModuleType, value: Any) -> None:
    """Every value comes out as json writes it without spaces, and is read as json reads it."""
    text = ours.dumps(value)
    assert text == json.dumps(value, separators=(",", ":"))
    assert ours.loads(text) == json.loads(text)


@_BOTH
@given(text=st.text('{}[]",:\\/ \t\r\n\f\u00a0truefalsn0123456789.-+eEuNaIy', max_size=12) | _VALUES.map(json.dumps))
def test_what_is_read_is_what_json_reads(ours: ModuleType, text: str) -> None:
    """Every text is the same value as for json, or an error for both."""
    if "NaN" not in text and "Infinity" not in text:
        assert _reads(ours.loads, text) == _reads(json.loads, text)


@_BOTH
@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a":-Infinity}', "", " ", "1 2", "[1,]", "{'a':1}", "\ufeff1"])
def test_what_is_not_json_is_refused(ours: ModuleType, text: str) -> None:
    """Json itself would take the first three."""
    with pytest.raises(ValueError, match=r"."):
        ours.loads(text)


@_BOTH
@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": b"bytes"}, {1}])
def test_what_is_not_json_is_not_written(ours: ModuleType, value: Any) -> None:
    """NaN, infinity and Python's own types have no text."""
    with pytest.raises(ValueError, match=r"."):
        ours.dumps(value)

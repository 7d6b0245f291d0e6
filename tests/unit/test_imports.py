"""What the helpers load: start-up time is login time, and the user's own directory is not to be trusted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import helpers
from gatewayctl.sshd.config import PYTHON_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = Path(helpers.__file__).parent
_LAUNCH = _ROOT / "launch.py"
_STANDARD_LIBRARY_ALONE = [
    ".".join(path.relative_to(_ROOT.parent).with_suffix("").parts)
    for room in ("", "protocol", "session", "ssh", "broker/accounts")
    for path in sorted((_ROOT / room).glob("*.py"))
    if path.stem not in {"__init__", "launch", "service"}
]
_EXPENSIVE = {"asyncio", "ctypes", "dataclasses", "hashlib", "inspect", "logging", "pathlib", "subprocess", "tempfile"}
_EXPENSIVE |= {"collections", "contextlib", "curses", "enum", "functools", "json", "re", "signal", "socket", "typing"}


def _loaded_by(*arguments: str) -> set[str]:
    argv = [sys.executable, *PYTHON_OPTIONS, "-X", "importtime", str(_LAUNCH), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.split("|")[2].strip() for line in lines[1:]}


@pytest.mark.parametrize(
    "arguments", [("authorized_keys", "/nowhere", "alice", "ssh-ed25519", "AAAA"), ("session", "/nowhere")]
)
def test_a_helper_loads_little_and_nothing_foreign(arguments: tuple[str, ...]) -> None:
    """The standard library and our own helpers, about 30 modules, none of the slow ones."""
    loaded = _loaded_by(*arguments)
    packages = {name.split(".")[0] for name in loaded}
    assert f"helpers.{arguments[0]}" in loaded
    assert packages <= set(sys.stdlib_module_names) | {"helpers", "zipimport"}
    assert not packages & _EXPENSIVE
    assert not {name for name in loaded if name.startswith("helpers.broker")}
    assert len(loaded) < 45


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("arguments", "most"),
    [
        (("authorized_keys", "/nowhere", "alice", "ssh-ed25519", "AAAA"), 3_000_000),
        (("session", "/nowhere"), 12_000_000),
    ],
)
def test_a_helper_executes_little(
    arguments: tuple[str, ...], most: int, tmp_path: Path, require: Callable[..., None]
) -> None:
    """Few instructions of the processor's are spent on top of Python's own start, whatever machine it is."""
    require("valgrind")

    def instructions(*arguments: str) -> int:
        out = tmp_path / "callgrind.out"
        argv = [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={out}",
            sys.executable,
            *PYTHON_OPTIONS,
            *arguments,
        ]
        subprocess.run(argv, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        found = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
        assert found
        return int(found[1])

    spent = instructions(str(_LAUNCH), *arguments) - instructions("-c", "pass")
    # Python 3.11: half a million, and 7 million, 5 of them for os. Python's own start takes 21 million.
    assert spent < most


@pytest.mark.parametrize("other", [("session", "_curses"), ("authorized_keys", "helpers.session.main")])
def test_one_helper_does_not_pay_for_the_other(other: tuple[str, str]) -> None:
    """What only sessions need is loaded for sessions alone."""
    helper, module = other
    assert (module in _loaded_by(helper, "/nowhere", "a", "b", "c")) == (helper == "session")


@pytest.mark.parametrize("module", _STANDARD_LIBRARY_ALONE)
def test_a_pure_module_needs_no_package(module: str) -> None:
    """It can be imported where nothing but Python is installed."""
    code = f"import sys; sys.path.insert(0, {str(_ROOT.parent)!r}); import {module}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_users_directory_and_environment_do_not_count(tmp_path: Path) -> None:
    """A module in the current directory, or on the user's PYTHONPATH, never takes the place of one of ours."""
    for name in ("socket.py", "json.py", "helpers.py", "sitecustomize.py"):
        (tmp_path / name).write_text("print('mine')\n")
    done = subprocess.run(
        [sys.executable, *PYTHON_OPTIONS, str(_LAUNCH), "authorized_keys", "/nowhere", "a", "b", "c"],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "json.py")},
        timeout=30,
    )
    assert (done.stdout, done.returncode) == (b"", 0)

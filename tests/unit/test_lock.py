"""What the image is made of is locked: ``make lock`` writes it anew."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

_ROOT = Path(__file__).parents[2]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())


def _locked(name: str) -> dict[str, str]:
    """Read a lock file: each package with its version."""
    text = (_ROOT / "image" / name).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+) .*\\$", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("requirements.txt", _PROJECT["project"]["dependencies"]),
        ("requirements-build.txt", _PROJECT["build-system"]["requires"]),
    ],
)
def test_all_that_is_wanted_is_locked(name: str, wanted: list[str]) -> None:
    """Each dependency has a version that fits."""
    locked = _locked(name)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(locked[requirement.name]), requirement


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_each_has_hashes(name: str) -> None:
    """No line is left to whatever an index answers."""
    text = (_ROOT / "image" / name).read_text()
    blocks = re.split(r"\n(?! )", text.strip())
    assert len(blocks) == len(_locked(name)) > 0
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)

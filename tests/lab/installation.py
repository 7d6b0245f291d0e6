"""Installations of the gateway in virtual environments of their own, from a wheel of the checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from lab.room import PLAIN_ENVIRONMENT

CHECKOUT = Path(__file__).parents[2]


def build_wheel(directory: Path) -> Path:
    """Build a wheel from the checkout, as `pip install .` does first."""
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory, CHECKOUT)
    (built,) = directory.glob("*.whl")
    return built


def install(wheel: Path, environment: Path) -> Path:
    """Install a wheel into a fresh virtual environment, beside what it depends on.

    Returns:
        The environment's ``bin``.
    """
    subprocess.run(
        ["/usr/bin/python3", "-m", "venv", "--without-pip", str(environment)], check=True, env=PLAIN_ENVIRONMENT
    )
    _pip("install", "--no-deps", wheel, python=environment / "bin" / "python")
    # What else is needed is taken from the tests' own environment, which comes last on the path.
    here = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))]
    (packages(environment) / "dependencies.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(here)))
    return environment / "bin"


def packages(environment: Path) -> Path:
    """Return the directory of an environment's packages."""
    (site,) = environment.glob("lib/python3*/site-packages")
    return site


def _pip(*arguments: str | Path, python: Path = Path(sys.executable)) -> None:
    """Run the tests' own pip, without any index."""
    subprocess.run(
        [sys.executable, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", python, *arguments],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**PLAIN_ENVIRONMENT, "PIP_NO_INDEX": "1"},
    )

"""The documentation and the code say the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from gatewayctl import cli, sources
from gatewayctl.definition import SettingInfo, describe
from gatewayctl.settings import Settings, load_settings
from helpers import errors

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLE = ROOT / "config.yaml.example"
COMPOSE = ROOT / "compose.yaml"
SETTINGS = list(describe(Settings))


def section(heading: str) -> str:
    """Return the README from one heading to the next of the same level."""
    level = heading.partition(" ")[0]
    _, _, rest = README.partition(f"\n{heading}\n")
    assert rest, f"README.md has no {heading}"
    return re.split(rf"^{level} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """Return the rows of the first table in a text, without its head."""
    table = re.search(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert table
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]


def test_readme_lists_every_setting_as_it_is() -> None:
    """The table has each setting once, in the order of the code, with what it does, its values and its default."""
    expected = []
    for info in SETTINGS:
        default = info.doc.default or (f"`{info.default}`" if info.default else "not set")
        default = "**required**" if info.required else default
        expected.append([f"`{info.variable}`", info.doc.about, info.doc.expects, default])
    assert rows(section("## Settings")) == expected


def test_readme_names_no_other_setting() -> None:
    """Every name in the documents that looks like a setting is one."""
    known = {info.variable for info in SETTINGS} | {"GATEWAY_COMMAND"}
    for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "config.yaml.example", "compose.yaml"):
        named = re.findall(r"(?<![A-Z_])(?:GATEWAY|REMOTE)_[A-Z_]+[A-Z]", (ROOT / name).read_text())
        assert {variable if variable in known else variable.removesuffix("_FILE") for variable in named} <= known, name


def test_readme_lists_every_error() -> None:
    """The table has each error's exit status and code, and no other."""
    found = {(int(row[0]), row[1].strip("`")) for row in rows(section("## When it fails"))}
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert found == {(cls.status, cls.code) for cls in classes if issubclass(cls, errors.GatewayError)}


def test_readme_lists_every_command() -> None:
    """The table has each subcommand with the first sentence of its help."""
    found = {re.search(r"gatewayctl ([a-z-]+)", row[0])[1]: row[1] for row in rows(section("## Commands"))}  # type: ignore[index]
    assert found == {name: command.about for name, command in cli.SUBCOMMANDS.items()}


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name: str) -> None:
    """Every link to a file or heading of ours finds it."""
    text = (ROOT / name).read_text()
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in text.splitlines() if line.startswith("#")}  # fmt: skip
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (ROOT / target).is_file(), target


def blocks() -> dict[str, str]:
    """Return the example's paragraphs by the setting that they are about, each as one line without its marks."""
    found = {}
    for block in EXAMPLE.read_text().split("\n\n"):
        comment, _, assignment = block.strip().rpartition("\n")
        if match := re.fullmatch(r"#([a-z_]+): (.+)", assignment):
            found[match[1]] = " ".join(line.removeprefix("# ") for line in comment.splitlines())
    return found


def text_of(info: SettingInfo) -> str:
    """Say of a setting what the example says."""
    default = "Required." if info.required else f"Default: {info.default or 'not set'}."
    secret = " A secret." if info.secret else ""
    return f"{info.doc.about}. Value: {info.doc.expects}. {default}{secret}"


def test_example_documents_every_setting() -> None:
    """Each setting, in the order of the code, with what it does, its values, its default and an example; no other."""
    assert blocks() == {info.name: text_of(info) for info in SETTINGS}
    assert list(blocks()) == [info.name for info in SETTINGS]


def test_example_is_yaml_in_effect_and_in_its_comments(tmp_path: Path) -> None:
    """As it is, it sets nothing; with every line taken in, each setting has its example as value."""
    text = EXAMPLE.read_text()
    assert yaml.safe_load(text) is None
    config = tmp_path / "config.yaml"
    config.write_text(re.sub(r"^#([a-z_]+: )", r"\1", text, flags=re.MULTILINE))
    given = sources.from_yaml(config, {info.name for info in SETTINGS})
    assert {name: value.text for name, value in given.items()} == {info.name: info.doc.example for info in SETTINGS}


def test_compose_documents_every_setting() -> None:
    """Each but REMOTE_HOST, which it sets, in the order of the code, as a comment that is an entry once taken in."""
    text = COMPOSE.read_text()
    comments = re.findall(r'^((?: +# .+\n)+) +#([A-Z_]+): "(.+)"$', text, re.MULTILINE)
    documented = {name: " ".join(line.strip(" #") for line in about.splitlines()) for about, name, _ in comments}
    others = [info for info in SETTINGS if not info.required]
    expected = {
        info.variable: f"{info.doc.about}. Default: {info.default or 'not set'}.{' A secret.' if info.secret else ''}"
        for info in others
    }
    assert documented == expected
    assert list(documented) == list(expected)
    taken_in = yaml.safe_load(re.sub(r'^( +)#([A-Z_]+: ")', r"\1\2", text, flags=re.MULTILINE))
    (service,) = taken_in["services"].values()
    environment = {"REMOTE_HOST": service["environment"].pop("REMOTE_HOST")}
    assert service["environment"] == {info.variable: info.doc.example for info in others}
    assert environment["REMOTE_HOST"].startswith("${REMOTE_HOST:?")


def test_readme_starts_a_gateway(tmp_path: Path) -> None:
    """The settings of the README's one command are enough."""
    command = re.search(r"^(REMOTE_HOST=.*) /opt/gateway/bin/gatewayctl serve$", README, re.MULTILINE)
    assert command
    environ = dict(word.split("=", 1) for word in command[1].split())
    key = tmp_path / "id_ed25519"
    key.touch(0o600)
    settings = load_settings(None, {}, environ | {"GATEWAY_SSH_KEY_PATH": str(key)})
    assert set(environ) == {"REMOTE_HOST", "GATEWAY_SSH_KEY_PATH"}
    assert not [line for line in settings.warnings if line.startswith("environment")]


_STAND_INS = """
umask 002
sudo() { "$@"; }
ssh-keyscan() { echo "$3 $(cut -d' ' -f1,2 keys/id_ed25519.pub)"; }
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the key files become root's")
def test_readme_makes_keys_that_are_taken(tmp_path: Path, require: Callable[..., None]) -> None:
    """For a container it has people make key files that are taken, with Ubuntu's umask too, and never committed."""
    require("ssh-keygen", "git")
    block = re.search(r"```sh\n(mkdir keys\n.*?)^docker compose up", README, re.MULTILINE | re.DOTALL)
    assert block
    subprocess.run(["bash", "-euc", _STAND_INS + block[1]], cwd=tmp_path, check=True, capture_output=True)
    name, host = (tmp_path / ".env").read_text().rstrip("\n").split("=")
    settings = load_settings(None, {}, {name: host, "GATEWAY_KEYS_DIR": str(tmp_path / "keys")})
    assert settings.warnings == ()
    assert settings.gateway_ssh_key_path == tmp_path / "keys" / "id_ed25519"
    assert settings.remote_known_hosts.read_text().startswith(f"{host} ssh-ed25519 ")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    assert subprocess.run(status, cwd=tmp_path, check=True, capture_output=True).stdout == b"?? .gitignore\n"

"""mkdocs's hook: pages from outside docs/, which is all that mkdocs looks at by itself.

README.md is the site's first page; SECURITY.md and the other pages of the checkout's top, and files that a page
links to, come with it. Links are written for the checkout, where they lead to the same files, and changed here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)]*)?\)")
"""A link of Markdown to a file of ours: its target, and the heading there."""


def in_site(path: PurePosixPath) -> PurePosixPath:
    """Return where a file of the checkout is in the site."""
    if path == PurePosixPath("README.md"):
        return PurePosixPath("index.md")
    return path.relative_to("docs") if path.is_relative_to("docs") else path


def in_checkout(uri: str) -> PurePosixPath:
    """Return where a page of the site is in the checkout."""
    if uri == "index.md":
        return PurePosixPath("README.md")
    return PurePosixPath(uri) if uri in PAGES else "docs" / PurePosixPath(uri)


def target(page: PurePosixPath, link: str) -> PurePosixPath:
    """Return the file of the checkout that a page's link leads to."""
    return PurePosixPath(os.path.normpath(page.parent / link))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the checkout's top, and the files outside docs/ that any page links to."""
    pages = [*PAGES, *(f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md"))]
    linked = {
        target(PurePosixPath(page), found[1])
        for page in pages
        for found in LINK.finditer((ROOT / page).read_text(encoding="utf-8"))
    }
    outside = {PurePosixPath(page) for page in PAGES} | {path for path in linked if not path.is_relative_to("docs")}
    for path in sorted(outside):
        if (ROOT / path).is_file():  # mkdocs itself names a link that leads nowhere
            files.append(File.generated(config, str(in_site(path)), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links within the checkout into links within the site."""
    del config, files
    here = in_checkout(page.file.src_uri)
    start = in_site(here).parent
    return LINK.sub(
        lambda found: f"]({os.path.relpath(in_site(target(here, found[1])), start)}{found[2] or ''})", markdown
    )

"""What the site needs besides docs/: the pages at the repository's root, and links that leave the site.

A hook of mkdocs (mkdocs.yml). README.md becomes the front page; a link to a file that is no page, such as a table of
experiments, becomes its name.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^()\s#]*)(#[^()\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the repository's root."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point every relative link at the site's own page, or leave its text alone."""
    at_root = page.file.src_uri in PAGES.values()

    def moved(found: re.Match[str]) -> str:
        image, text, target, anchor = found.groups(default="")
        if not target or re.match(r"[a-z]+:", target):
            return found.group()
        from_root = normpath(target if at_root else f"docs/{target}")
        name = PAGES.get(from_root, from_root.removeprefix("docs/"))
        if files.get_file_from_path(name) is None:
            return text
        return f"{image}[{text}]({name}{anchor})"

    return LINK.sub(moved, markdown)

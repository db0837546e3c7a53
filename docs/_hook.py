"""The mkdocs hook (mkdocs.yml): adds the pages at the repository's root to the site, and rewrites links.

README.md becomes the front page. A link to a file that is not a page, such as a table of experiments, becomes plain
text.
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
    """Point every relative link at the page of the site, or replace it by its text."""
    at_root = page.file.src_uri in PAGES.values()

    def rewritten(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups(default="")
        if not target or re.match(r"[a-z]+:", target):
            return link.group()
        from_root = normpath(target if at_root else f"docs/{target}")
        name = PAGES.get(from_root, from_root.removeprefix("docs/"))
        if files.get_file_from_path(name) is None:
            return text
        return f"{image}[{text}]({name}{anchor})"

    return LINK.sub(rewritten, markdown)

"""What the documentation site needs beyond its configuration (mkdocs.yml): pages from outside docs/, and links to them.

Links are written for a reader of the repository. A link to a file that is no page of the site becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
CARDS = "lotts_search/shapes/models"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/paper/README.md": "results/run-paper.md",
    "integrations/comfyui/README.md": "comfyui.md",
} | {f"{CARDS}/{model}/README.md": f"models/{model}.md" for model in sorted(p.name for p in (ROOT / CARDS).iterdir())}
"""Pages of the site, by their files in the repository."""
SOURCES = {page: source for source, page in PAGES.items()}

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):<code>~?([\w.]+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links between files of the repository at the pages of the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(uri, f"docs/{uri}"))

    def moved(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups()
        if ":" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        to = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(to) is None:
            if not (ROOT / path).exists():
                return link[0]  # broken: the strict build reports it
            return text
        return f"{mark}[{text}]({posixpath.relpath(to, posixpath.dirname(uri) or '.')}{anchor or ''})"

    return LINK.sub(moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Turn the roles of docstrings, :class:`x.Y`, into links to the page that describes them, where there is one."""
    return ROLE.sub(lambda role: _reference(role[1]), html)


def _reference(name: str) -> str:
    return f'<autoref optional identifier="{name}"><code>{name.rpartition(".")[2]}</code></autoref>'

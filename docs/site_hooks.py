"""Hooks of mkdocs.yml: pages of the site that lie at the top of the repository.

GitHub shows README.md, CONTRIBUTING.md and CHANGELOG.md there; the site has the same text, with the
links changed to where the pages are in it.
"""

import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Where each file is found in the site."""


def _moved(target: str) -> str:
    """Where a link from the top of the repository leads in the site; "" if the site lacks it."""
    path, hash_, anchor = target.partition("#")
    if path in PAGES:
        return PAGES[path] + hash_ + anchor
    return target.removeprefix("docs/") if path.startswith("docs/") else ""


def _rewritten(text: str) -> str:
    """The page with its links moved; those to other files of the repository become code."""

    def link(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        moved = _moved(target)
        return f"{image}[{label}]({moved})" if moved else f"{label} (`{target}`)"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Moves the links of a notebook, which MkDocs neither moves nor checks.

    Raises:
      PluginError: one leads nowhere.
    """
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def link(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
        found = files.get_file_from_path(path)
        if found is None:
            raise PluginError(f"{page.file.src_uri}: the link {target} leads nowhere")
        return f'href="{found.url_relative_to(page.file)}{anchor}"'

    return re.sub(r'href="([^":#]+\.(?:md|ipynb))(#[^"]*)?"', link, html)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    root = pathlib.Path(config.config_file_path).parent
    for name, page in PAGES.items():
        text = (root / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_rewritten(text)))
    return files

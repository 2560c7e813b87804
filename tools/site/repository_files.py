"""Links to files of the repository that are no pages of the site: each such file gets a page that shows it."""

from __future__ import annotations

import html
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "source"  # of these pages, inside the site


def page_of(path: str) -> str:
    """The page that shows a file or a folder. path: from the repository's folder, with slashes."""
    return f"{FOLDER}/{path}"


class LinksToFiles(SphinxPostTransform):
    """A link that Markdown writes by the path of a file leads to the page that shows this file."""

    default_priority = 8  # before MyST looks for what such links mean, which is at 9

    def run(self, **kwargs: Any) -> None:
        """Put a reference in the place of each such link; where there is no such file, MyST warns."""
        here = self.env.docname
        for node in list(self.document.findall(pending_xref)):
            if node["reftype"] == "myst" and node["refdomain"] != "doc":
                target = node["reftarget"].partition("#")[0]
                path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
                if target and not path.startswith("..") and (ROOT / path).exists():
                    linked(self.app).add(path)
                    uri = self.app.builder.get_relative_uri(here, page_of(path))
                    node.replace_self(nodes.reference("", "", node[0].deepcopy(), refuri=uri, internal=True))


def linked(app: Sphinx) -> set[str]:
    """The files that need a page: every module, because the reference leads to them, and what texts link to."""
    if not hasattr(app.env, "flashlite_files"):
        modules = (ROOT / "flashlite").rglob("*.py")
        app.env.flashlite_files = {path.relative_to(ROOT).as_posix() for path in modules}
    return app.env.flashlite_files  # kept from build to build, as what is linked from unchanged pages must be


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The pages of these files, as Sphinx asks for them."""
    for path in sorted(linked(app)):
        if (ROOT / path).exists():
            yield page_of(path), {"title": path, "body": shown(path)}, "page.html"


def shown(path: str) -> str:
    """A file as HTML, each line with its number and an anchor `L-12`; of a folder, the names in it; else the size."""
    if (ROOT / path).is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in (ROOT / path).iterdir() if not p.name.startswith((".", "__")))
        return f"<h1>{html.escape(path)}/</h1><ul>{''.join(f'<li>{html.escape(name)}</li>' for name in names)}</ul>"
    try:
        text = (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = f"{(ROOT / path).stat().st_size:,} bytes that aren't text"
    try:
        lexer = get_lexer_for_filename(path)
    except ClassNotFound:
        lexer = get_lexer_for_filename("any.txt")
    lines = HtmlFormatter(linenos="inline", linespans="L", wrapcode=True)
    return f"<h1><code>{html.escape(path)}</code></h1>{highlight(text, lexer, lines)}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx what to call."""
    app.add_post_transform(LinksToFiles)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": False, "parallel_write_safe": False}

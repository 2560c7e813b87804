"""Sphinx's settings for the site. tools/site/build_site.py makes the pages that Sphinx reads, and calls it."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import api_pages  # noqa: E402
import docstrings  # noqa: E402
import repository_files  # noqa: E402

from flashlite.version import __version__  # noqa: E402

project, author, copyright = "flashlite", "", ""
release = version = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.linkcode", "look", "repository_files"]

# Text and notebooks
nb_execution_mode = "off"  # a chapter shows the outputs that it was kept with
nb_render_markdown_format = "myst"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4  # a code host's, so that links hold in both places
myst_dmath_double_inline = True
suppress_warnings = ["myst.header"]  # a card that is shown on a hub may begin below the first level

# The reference
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# How it looks; nothing is asked from another host
html_theme = "furo"
html_title = "flashlite"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_js_files = ["search_offline.js"]
html_math_renderer = "mathml"
html_show_copyright = html_show_sphinx = html_copy_source = False
html_theme_options = {"navigation_with_keys": False, "top_of_page_buttons": []}
templates_path: list[str] = []
pygments_style, pygments_dark_style = "tango", "github-dark"


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Where [source] leads: the line of the file's page. The reference's pages are one folder deep."""
    found: Any = sys.modules.get(info["module"])
    for part in info["fullname"].split("."):
        found = getattr(found, part, None)
    found = inspect.unwrap(found.fget if isinstance(found, property) else found)
    try:
        path = Path(inspect.getsourcefile(found) or "").resolve().relative_to(repository_files.ROOT)
        line = inspect.getsourcelines(found)[1]
    except (TypeError, ValueError, OSError):
        return None
    return f"../{repository_files.page_of(path.as_posix())}.html#L-{line}"


def write_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's hook: a docstring's lines become reStructuredText."""
    try:
        names = list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        names = []
    module = name if what == "module" else getattr(thing, "__module__", None)
    if isinstance(thing, property):
        module = getattr(thing.fget, "__module__", None)
    lines[:] = docstrings.to_rst("\n".join(lines), names, api_pages.targets().get(module or "", {}))


def import_types() -> None:
    """Do what modules import for type checkers alone, so that Sphinx finds these types by the names that they have."""
    for name in api_pages.targets():
        module = importlib.import_module(name)
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                exec(compile(ast.Module(node.body, []), name, "exec"), vars(module))


def setup(app: Any) -> None:
    """Tell Sphinx of the hook."""
    import_types()
    app.connect("autodoc-process-docstring", write_docstring)

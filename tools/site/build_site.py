"""Build the site from this clone, without a network: python tools/site/build_site.py OUT

OUT/html/index.html is its first page, and opens without a server. OUT/pages is what Sphinx reads: the repository's own
texts, at the paths at which their links hold, beside pages made from docstrings, course.toml and results/. Each build
begins anew.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import api_pages  # noqa: E402
import course_pages  # noqa: E402
from house import entries  # noqa: E402

COPIED = (  # texts for readers, and the pictures and data that they show; chapters/report.md is a template
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "chapters/[A-Z]*.md", "chapters/*.ipynb", "chapters/images/*",
    "exercises/README.md", "results/*.md", "results/*.png", "results/*.json", "flashlite/*/README.md",
)  # fmt: skip
PICTURE = re.compile(r"<picture>.*?<img src=\"([^\"]+)\".*?alt=\"([^\"]+)\".*?</picture>", re.DOTALL)


def stage(pages: Path) -> None:
    """Put all that Sphinx reads into a folder."""
    for path in (path for pattern in COPIED for path in sorted(ROOT.glob(pattern))):
        copy(path, pages / path.relative_to(ROOT))
    for path in sorted((HERE / "pages").iterdir()):
        copy(path, pages / path.name)
    house = (ROOT / "README.md").read_text(encoding="utf-8").split("## The house")[1].split("```")[1]
    api_pages.write(pages / "api", dict(entries(house)))
    course_pages.write_tasks(pages)
    course_pages.write_results(pages)


def copy(path: Path, target: Path) -> None:
    """Copy a file. In a text, a picture of two versions becomes one image, to which look.py adds the dark one, and the
    site's own pages link to files of the repository as if they lay at its top.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".md":
        text = PICTURE.sub(r"![\2](\1)", path.read_text(encoding="utf-8")).replace("](../../../", "](")
        target.write_text(text, encoding="utf-8")
    else:
        shutil.copyfile(path, target)


def write_trace(static: Path) -> None:
    """Write the trace as a script, because a page that is opened as a file may not ask for data."""
    static.mkdir(parents=True, exist_ok=True)
    trace = (HERE / "trace.json").read_text(encoding="utf-8").strip()
    (static / "trace.js").write_text(f"window.flashliteTrace = {trace};\n", encoding="utf-8")


def main() -> int:
    """Build; the exit code is Sphinx's, which takes each warning for an error and names them all."""
    from sphinx.cmd.build import build_main

    out = Path(sys.argv[1]).resolve()
    for folder in ("pages", "html", "static"):
        shutil.rmtree(out / folder, ignore_errors=True)
    stage(out / "pages")
    write_trace(out / "static")
    settings = ["-D", f"html_static_path={HERE / 'static'},{out / 'static'}"]
    return build_main(["-W", "--keep-going", "-E", "-q", "-c", str(HERE), *settings, "-d", str(out / "doctrees"),
                       str(out / "pages"), str(out / "html")])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

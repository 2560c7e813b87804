"""Check that every link inside of this repository leads somewhere: python tools/check_links.py.

It looks at all .md files and at the text of all notebooks: Markdown links, and the pictures of HTML. A link may name a
file or folder beside the file that it is in, and a heading of it after `#`. Links to other hosts are left alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|srcset|href)=\"([^\"]+)\"")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def documents(root: Path) -> list[Path]:
    """All .md files and notebooks, but for those in hidden folders."""
    found = [path for kind in ("*.md", "*.ipynb") for path in root.rglob(kind)]
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts))


def prose(path: Path) -> str:
    """What a reader sees as text: a notebook's cells of code are left out."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")


def links(text: str) -> Iterator[str]:
    """The targets of a text's links, code left out."""
    for found in LINK.finditer(CODE.sub("", text)):
        yield found[1] or found[2]


def anchors(text: str) -> set[str]:
    """What a link may name after `#`: headings as code hosts spell them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken(path: Path) -> list[str]:
    """The links of a document that lead nowhere, each with its reason."""
    found = []
    for link in links(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists():
            found.append(f"{link}: there is no such file")
        elif anchor and (target.is_dir() or anchor not in anchors(prose(target))):
            found.append(f"{link}: there is no such heading")
    return found


def main() -> None:
    lines = [f"{path.relative_to(ROOT)}: {line}" for path in documents(ROOT) for line in broken(path)]
    sys.exit("\n".join(lines) if lines else 0)


if __name__ == "__main__":
    main()

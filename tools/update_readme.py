"""Write the result table of README.md from results/: python tools/update_readme.py [--check]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flashlite.tables import ladder_markdown

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def updated(text: str) -> str:
    """The README with the table of the newest results between its markers."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    table = ladder_markdown(json.loads((ROOT / "results/bench-opt-mini-fp32.json").read_text()))
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    if "--check" in sys.argv and text != updated(text):
        sys.exit("README.md's table is not that of results/: run python tools/update_readme.py")
    readme.write_text(updated(text))


if __name__ == "__main__":
    main()

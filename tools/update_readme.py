"""Write the result tables of README.md from results/: python tools/update_readme.py [--check]."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flashlite.tables import ladder_markdown, peer_markdown, summary_lines

ROOT = Path(__file__).parent.parent


def updated(text: str) -> str:
    """The README with the tables of the newest results between their markers."""
    scale = _result("bench-opt-6.7b-bf16")
    first, *rest = summary_lines(scale)
    tables = {
        "results": ladder_markdown(_result("bench-opt-mini-fp32")),
        "scale": "\n".join([f"{first}.", "", peer_markdown(scale), "", *(f"- {line}" for line in rest)]),
    }
    for marker, table in tables.items():
        begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
        before, others = text.split(begin)
        text = f"{before}{begin}\n\n{table}\n\n{end}{others.split(end)[1]}"
    return text


def _result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"results/{name}.json").read_text())


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    if "--check" in sys.argv and text != updated(text):
        sys.exit("README.md's tables are not those of results/: run python tools/update_readme.py")
    readme.write_text(updated(text))


if __name__ == "__main__":
    main()

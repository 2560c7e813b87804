"""Write what README.md says of results/ from there: python tools/update_readme.py [--check]."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flashlite.bench.result import Result
from flashlite.bench.tables import ladder_markdown, peer_markdown, summary_lines

ROOT = Path(__file__).parent.parent


def updated(text: str) -> str:
    """The README with what the newest results say between their markers."""
    scale = Result.from_json(_result("bench-opt-6.7b-bf16"))
    first, *rest = summary_lines(scale)
    verified = _result("verified-reads")
    plain_ms, verified_ms = verified["plain_ms"], verified["verified_ms"]
    texts = {
        "results": ladder_markdown(Result.from_json(_result("bench-opt-mini-fp32"))),
        "scale": "\n".join([f"{first}.", "", peer_markdown(scale), "", *(f"- {line}" for line in rest)]),
        "verified": f"A token of opt-mini then takes {verified_ms:.1f} ms instead of {plain_ms:.1f} at stage "
        f"{verified['stage']}, {verified_ms / plain_ms - 1:.0%} more.",
    }
    for marker, new in texts.items():
        begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
        before, others = text.split(begin)
        text = f"{before}{begin}\n\n{new}\n\n{end}{others.split(end)[1]}"
    return text


def _result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"results/{name}.json").read_text())


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    if "--check" in sys.argv and text != updated(text):
        sys.exit("README.md doesn't say what results/ does: run python tools/update_readme.py")
    readme.write_text(updated(text))


if __name__ == "__main__":
    main()

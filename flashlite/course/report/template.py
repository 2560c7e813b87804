"""Filling the report's template, chapters/report.md, and keeping what a student wrote into an earlier report.

`{{ladder}}` stands for what is known of the ladder. Below each heading of the third level is room for an answer.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping

from flashlite.errors import FlashliteError

QUESTION = "### "
COMMENT = re.compile(r"<!--.*?-->\s*", re.DOTALL)  # for teachers


def fill(template: str, values: Mapping[str, str]) -> str:
    """A template with each `{{name}}` replaced by its value, without its comments.

    Raises FlashliteError for a name that there isn't.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            known = ", ".join(f"{{{{{name}}}}}" for name in values)
            raise FlashliteError(f"the report's template has {found[0]}: choose among {known}")
        return values[found[1]]

    return re.sub(r"\{\{(\w+)\}\}", value, COMMENT.sub("", template))


def with_answers(report: str, earlier: str) -> str:
    """A new report with the answers of an earlier one: what stands there below the same question, up to a heading that
    the new report has too."""
    ends = {line for heading, line in _lines(report, None) if heading}
    given = answers(earlier, ends)
    lines: list[str] = []
    for question, line in _lines(report, ends):
        if question not in given or line == question:
            lines.append(line)
        if line == question in given:
            lines += [*given[question], ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def answers(report: str, ends: Container[str]) -> dict[str, list[str]]:
    """The lines below each question of a report that has an answer. ends: the headings that end one."""
    below: dict[str, list[str]] = {}
    for question, line in _lines(report, ends):
        if question and line != question:
            below.setdefault(question, []).append(line.rstrip())
    written = {question: lines for question, lines in below.items() if re.search(r"\w", "".join(lines))}
    return {question: "\n".join(lines).rstrip().split("\n") for question, lines in written.items()}


def _lines(report: str, ends: Container[str] | None) -> Iterator[tuple[str, str]]:
    """Each line of a report with the question that it belongs to, which is a heading of the third level, or nothing.

    ends: the headings that end an answer; with None each heading does, and stands for itself
    """
    question, in_code = "", False
    for line in report.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            in_code = not in_code
        elif line.startswith("#") and not in_code and (ends is None or line.rstrip() in ends):
            line = line.rstrip()
            question = line if ends is None or line.startswith(QUESTION) else ""
            yield question, line
            question = "" if ends is None else question
            continue
        yield question, line

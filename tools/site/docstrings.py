"""Docstrings of this project as reStructuredText, for Sphinx: prose, then parameters, one `name: meaning` a line."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping

NAME = r"\*{0,2}[A-Za-z_]\w*"
PARAMETER = re.compile(rf"({NAME}(?:, {NAME})*): +(\S.*)")
OUTCOME = re.compile(r"(?<=[.)\]]) (?=Returns |Raises [A-Z])")  # between two sentences of one paragraph
RAISES = re.compile(r"Raises (\w+),?\s*(.*)")
SHAPE = r"(?<![\w\]])\[[\w*/+.-]+(?:, ?[\w*/+. -]+)*\]"  # [tokens, d_model]: set as code
JOINED = ",\u2060"  # between names of one field: Sphinx would take what stands before a space for a type


def to_rst(text: str, names: Collection[str] = (), targets: Mapping[str, str] | None = None) -> list[str]:
    """The lines of a docstring as reStructuredText, with parameters, results and errors as fields.

    text: as inspect.cleandoc gives it
    names: of the parameters; what a list names besides is an attribute
    targets: by a name that stands in backticks, the qualified name that it links to
    """
    lines: list[str] = []
    for chunk in _chunks(text, names, targets or {}):
        if lines and not (lines[-1].startswith(":") and chunk.startswith(":")):
            lines.append("")
        lines += chunk.splitlines()
    return [*lines, ""]


def _chunks(text: str, names: Collection[str], targets: Mapping[str, str]) -> Iterator[str]:
    """What a docstring consists of: paragraphs, blocks as they were typed, and fields of one line each."""
    for block in filter(None, re.split(r"\n\s*\n", text.strip("\n"))):
        if _is_verbatim(block):
            yield "::\n\n" + "\n".join(f"    {line}" for line in block.splitlines())
        else:
            for listed, said in _parts(block, names):
                first, *outcomes = OUTCOME.split(said)
                if listed:
                    kind = "param" if set(_names(listed)) & set(names) else "ivar"
                    yield f":{kind} {escaped(listed, {}).replace(', ', JOINED)}: {escaped(first, targets)}"
                elif first:
                    outcomes.insert(0, first)
                yield from (_sentence(sentence, targets) for sentence in outcomes)


def _is_verbatim(block: str) -> bool:
    """Whether a paragraph is code or a table: indented, set in columns, or lines that are Python."""
    if all(line.startswith(" ") for line in block.splitlines()) or re.search(r"\S {3,}\S", block):
        return True
    try:
        body = ast.parse(block).body
    except SyntaxError:
        return False
    return all(isinstance(node, (ast.Import, ast.Assign)) or _is_call(node) for node in body)


def _is_call(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def _parts(block: str, names: Collection[str]) -> list[tuple[str, str]]:
    """A paragraph's prose, and what it says of parameters: the names that are listed, "" for prose, and the text.

    A line names parameters if it begins with nothing but theirs, or if all lines of the paragraph look like that.
    """
    lines = block.splitlines()
    is_list = all(PARAMETER.match(line) or line.startswith(" ") for line in lines)
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in lines:
        found = PARAMETER.match(line)
        if found and (is_list or set(_names(found[1])) <= set(names)):
            parts.append((found[1], [found[2]]))
        else:
            parts[-1][1].append(line.strip())
    return [(listed, " ".join(said)) for listed, said in parts]


def _names(listed: str) -> list[str]:
    return [name.lstrip("*") for name in listed.split(", ")]


def _sentence(text: str, targets: Mapping[str, str]) -> str:
    """Prose; as a field if it says what is returned or raised."""
    raised = RAISES.match(text)
    if raised:
        return f":raises {raised[1]}: {escaped(raised[2], targets)}"
    if text.startswith("Returns "):
        return f":returns: {escaped(text.removeprefix('Returns '), targets)}"
    return escaped(text, targets)


def escaped(text: str, targets: Mapping[str, str]) -> str:
    """Text in which nothing is markup but what stands in backticks: a link if its target is known, else as typed.

    Shapes are set as code as well.
    """
    pieces = re.split(rf"(`[^`]+`|{SHAPE})", text)
    for i, piece in enumerate(pieces):
        if i % 2:
            name = piece.strip("`")
            target = targets.get(name.removesuffix("()"))
            before = "\\ " if re.search(r"\w$", pieces[i - 1]) else ""
            after = "\\ " if re.match(r"\w", pieces[i + 1]) else ""
            pieces[i] = f"{before}:py:obj:`{name} <{target}>`{after}" if target else f"{before}``{name}``{after}"
        else:
            pieces[i] = re.sub(r"([\\*|`]|_(?!\w))", r"\\\1", piece)
    return "".join(pieces)

"""What the texts promise about all else: links that lead somewhere, files that exist, words and counts that hold."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import check_links
import count_cases
import house
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "chapters/GLOSSARY.md").read_text(encoding="utf-8")
IMAGES = ROOT / "chapters/images"


# Links


@pytest.mark.parametrize("path", check_links.documents(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert check_links.broken(path) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[a](nowhere.md)", "nowhere.md: there is no such file"),
        ("[a](other.md#third)", "other.md#third: there is no such heading"),
        ("[a](#third)", "#third: there is no such heading"),
        ('<img src="nowhere.svg">', "nowhere.svg: there is no such file"),
        ('<source srcset="nowhere.svg">', "nowhere.svg: there is no such file"),
        ("[a](folder#first)", "folder#first: there is no such heading"),
    ],
)
def test_a_link_that_leads_nowhere_is_named(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.md").write_text("# First\n\n## The second: `code`, and more\n")
    path = tmp_path / "page.md"
    path.write_text(f"# First\n\n{text}\n")
    assert check_links.broken(path) == [reason]
    path.write_text("# First\n\n[a](other.md#the-second-code-and-more) [b](#first) [c](folder) [d](https://x.org/y)\n")
    assert check_links.broken(path) == []
    path.write_text(f"```\n{text}\n```\n\n`{text}`\n")
    assert check_links.broken(path) == [], "code is no text"


# The house


def modules_of_the_house() -> list[str]:
    """The files that the README's house names, with their folders."""
    block = README.split("## The house")[1].split("```")[1]
    names: list[str] = []
    folders: list[str] = []
    for line in block.strip().splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        if name.endswith(".py"):
            names.append("".join(folders))
    return names


def test_the_house_names_every_module_once() -> None:
    modules = [str(path.relative_to(ROOT)) for path in (ROOT / "flashlite").rglob("*.py")]
    told = [name for name in modules if not name.endswith("__.py")] + ["flashlite/__init__.py"]
    assert Counter(modules_of_the_house()) == Counter(told)


def test_a_line_of_the_house_fits_and_says_something() -> None:
    for line in README.split("## The house")[1].split("```")[1].strip().splitlines()[1:]:
        assert len(line) <= 125, line
        assert len(line.split()) >= 3, line


def test_a_new_module_gets_a_line_and_that_of_a_lost_one_goes(tmp_path: Path) -> None:
    for name in ("zebra", "new", "sub/__init__", "sub/old", "__init__"):
        path = tmp_path / f"flashlite/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""Some words about {name}. More of them."""\n')
    lines = (
        "flashlite/",
        "  zebra.py  kept as it is",
        "  lost.py   gone",
        "  sub/      a folder",
        "chapters/   notebooks",
    )
    assert [line.split(maxsplit=1) for line in house.house("\n".join(lines), tmp_path).splitlines()] == [
        ["flashlite/"],
        ["zebra.py", "kept as it is"],
        ["new.py", "some words about new"],
        ["sub/", "a folder"],
        ["old.py", "some words about sub/old"],
        ["chapters/", "notebooks"],
    ]


def test_a_long_sentence_is_cut_where_it_can_be(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(f'"""OPT and its parts: {", ".join(["one of many"] * 12)}."""\n')
    assert house.first_sentence(path) == "OPT and its parts"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "chapters/README.md", "results/NOTES.md"])
def test_paths_in_the_text_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^```.*?^```", "", text)
    spans = re.findall(r"`(?!class/|\.)([\w./-]+/[\w.-]+\.(?:py|md|toml|json|ipynb))`", text)  # class/: an example
    lost = [span for span in spans if not any((base / span).exists() for base in (ROOT, ROOT / "flashlite"))]
    assert spans
    assert lost == []


# The drawing and the glossary


def test_the_two_drawings_differ_in_their_colours_alone() -> None:
    light, dark = ((IMAGES / f"system-{name}.svg").read_text(encoding="utf-8") for name in ("light", "dark"))
    common = "/* the same in both files from here on */"
    assert light.split("<style>")[0] == dark.split("<style>")[0]
    assert light.split(common)[1] == dark.split(common)[1]
    rules = [
        re.findall(r"^  (\S+) +\{", text.split("<style>")[1].split(common)[0], re.MULTILINE) for text in (light, dark)
    ]
    assert rules[0] == rules[1]


def test_the_drawing_names_files_that_exist() -> None:
    named = set(re.findall(r">(\w+\.py)<", (IMAGES / "system-light.svg").read_text(encoding="utf-8")))
    assert named <= {path.name for path in (ROOT / "flashlite").rglob("*.py")}
    assert {"predictor.py", "window.py", "pool.py", "flash.py", "bundle.py"} <= named


def glossary() -> list[list[str]]:
    rows = [line.strip("|").split(" | ") for line in GLOSSARY.splitlines() if line.startswith("| **")]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_glossary_is_in_order_and_complete() -> None:
    words = [row[0].strip("*") for row in glossary()]
    assert words == sorted(words, key=str.lower)
    assert len(words) == len(set(words))
    for word in ("neuron", "bundle", "record", "window", "s_agg", "pool", "resident", "predictor", "oracle", "recall",
                 "agreement", "decode", "prefill", "direct I/O", "queue depth", "KV cache", "budget", "base", "planted",
                 "stage", "ladder", "store"):  # fmt: skip
        assert word in words


def test_the_glossary_explains_in_one_or_two_sentences_and_says_where() -> None:
    for word, meaning, chapter, file in glossary():
        sentences = re.findall(r"[.:!?](?= |$)", meaning)
        assert meaning.endswith("."), word
        assert 1 <= len(sentences) <= 3, word
        assert all(0 <= int(number) <= 10 for number in chapter.split(", ")), word
        assert file.startswith("[`"), word


# Counts


def test_the_cases_of_the_tests_readme_are_those_collected(request: pytest.FixtureRequest) -> None:
    items = request.session.items
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    if {item.path.name for item in items} != files or request.config.option.keyword or request.config.option.markexpr:
        pytest.skip("counted only where all tests are collected")
    text = count_cases.README.read_text(encoding="utf-8")
    assert text == count_cases.updated(text, count_cases.cases(items)), "run python tools/count_cases.py"


def test_rows_are_counted_by_what_they_name() -> None:
    known = {("test_a.py", "test_one"): 3, ("test_a.py", "test_two"): 4, ("test_b.py", "test_one"): 5}
    for cell, cases in (("`test_a.py`", 7), ("`test_a.py`: `…two`", 4), ("`test_a.py::test_…`; `test_b.py::…one`", 12)):
        assert count_cases.count(cell, known) == cases
        assert count_cases.updated(f"| text | {cell} | 1 |", known) == f"| text | {cell} | {cases} |\n"
    with pytest.raises(ValueError, match=r"names test_b\.py::…two, and there is no such test"):
        count_cases.count("`test_b.py::…two`", known)

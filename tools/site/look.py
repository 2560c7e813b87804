"""What the site does otherwise than Sphinx does by itself: formulas without a script, a drawing for each theme."""

from __future__ import annotations

import re
from pathlib import Path

from docstrings import JOINED
from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator


def formula(self: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line of text."""
    self.body.append(mathml(node))
    raise nodes.SkipNode


def displayed_formula(self: HTML5Translator, node: nodes.math_block) -> None:
    """A formula on a line of its own."""
    self.body.append(f'<div class="math">{mathml(node)}</div>')
    raise nodes.SkipNode


def mathml(node: nodes.math | nodes.math_block) -> str:
    """A formula as every browser draws it by itself. Where it can't be translated, Sphinx warns."""
    tex = re.sub(r"\\big([(\[])", r"\\bigl\1", re.sub(r"\\big([)\]])", r"\\bigr\1", node.astext()))
    try:
        return str(latex2mathml.tex2mathml(tex, as_block=isinstance(node, nodes.math_block)))
    except MathError as error:
        logging.getLogger(__name__).warning("%s in %s", error, tex, location=node)
        return ""


class DrawingForEachTheme(SphinxTransform):
    """Beside a drawing NAME-light.svg stands NAME-dark.svg; the page shows the one that suits its theme."""

    default_priority = 500

    def apply(self) -> None:
        """Put the dark drawing beside each light one."""
        for image in list(self.document.findall(nodes.image)):
            light = str(image["uri"])
            dark = light.replace("-light.", "-dark.")
            if dark != light and (Path(self.env.doc2path(self.env.docname)).parent / dark).exists():
                other = image.deepcopy()
                other["uri"] = dark
                image["classes"].append("only-light")
                other["classes"].append("only-dark")
                image.parent.insert(image.parent.index(image) + 1, other)


class NamesApart(SphinxTransform):
    """Several names of one field get the space between them that docstrings.py left out."""

    default_priority = 500

    def apply(self) -> None:
        """Put the spaces in."""
        for text in list(self.document.findall(nodes.Text)):
            if JOINED in text:
                text.parent.replace(text, nodes.Text(text.replace(JOINED, ", ")))


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx what to use."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.add_html_math_renderer("mathml", (formula, None), (displayed_formula, None))
    app.add_transform(DrawingForEachTheme)
    app.add_transform(NamesApart)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

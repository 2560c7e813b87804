"""A report as one page of HTML that needs nothing beside it: pictures are in it, and nothing of it is run or loaded."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping

from markdown_it import MarkdownIt  # rich brings it along

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ margin: 2rem auto; padding: 0 1rem; max-width: 50rem; font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a;
       background: #fff; }}
h1 {{ font-size: 1.6rem; margin: 0 0 1rem; }}
h2 {{ font-size: 1.15rem; margin: 1.6rem 0 0.4rem; border-bottom: 1px solid #bbb; }}
h3 {{ font-size: 1rem; margin: 1rem 0 0.2rem; }}
p, ul {{ margin: 0.4rem 0; }}
img {{ max-width: 100%; max-height: 19rem; }}
table {{ border-collapse: collapse; font-size: 0.87rem; display: block; overflow-x: auto; }}
th, td {{ padding: 0.12rem 0.6rem; border-bottom: 1px solid #ddd; }}
blockquote {{ margin: 0.2rem 0; padding: 0.2rem 0.8rem; min-height: 3rem; border-left: 3px solid #999;
             background: #f6f6f6; }}
code {{ font-size: 0.9em; background: #f0f0f0; padding: 0 0.2em; }}
pre {{ overflow-x: auto; background: #f6f6f6; padding: 0.5rem; }}
@media print {{ body {{ margin: 0; font-size: 10pt; max-width: none; }}
               img, table, blockquote {{ break-inside: avoid; }}
               h2, h3 {{ break-after: avoid; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(markdown: str, title: str, pictures: Mapping[str, bytes]) -> str:
    """The page of a report. pictures: PNG, by the names that the text uses."""
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = renderer.parse(markdown)
    for image in (child for token in tokens for child in token.children or [] if child.type == "image"):
        name = str(image.attrs["src"])
        if name in pictures:
            image.attrs["src"] = f"data:image/png;base64,{base64.b64encode(pictures[name]).decode()}"
    return PAGE.format(title=html.escape(title), body=renderer.renderer.render(tokens, renderer.options, {}))

"""A document as one HTML file that opens offline: styles, script, figures and images are inside, and no request leaves
it."""

import base64
import json
from importlib.resources import files

from kdtvit_ray.report.document import Block, Code, Document, Items, Parallel, Picker, Text, Thumbnails
from kdtvit_ray.report.escaping import escape_html
from kdtvit_ray.report.style import Figure
from kdtvit_ray.report.tables import Table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The browser itself refuses whatever would leave the page."""


def page(document: Document) -> str:
    """The whole file. Every text is escaped here; only figures' own SVG is taken as markup."""
    contents = "".join(
        f'<li><a href="#{section.anchor}">{escape_html(section.title)}</a></li>' for section in document.sections
    )
    banners = "".join(f'<p class="banner" role="note">{escape_html(banner)}</p>' for banner in document.banners)
    body = []
    for number, section in enumerate(document.sections, 1):
        inside = "".join(_block(block) for block in section.blocks)
        body.append(
            f'<section id="{section.anchor}"><h2><span class="num">{number}</span>{escape_html(section.title)}</h2>'
            f"{inside}</section>"
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape_html(document.title)}</title><style>{_asset('page.css')}</style></head>\n<body>"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>'
        f"<main><header><h1>{escape_html(document.title)}</h1><p>{escape_html(document.subtitle)}</p></header>"
        f"{banners}{''.join(body)}</main>\n<script>{_asset('page.js')}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return files("kdtvit_ray.report").joinpath(name).read_text(encoding="utf-8")


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f'<p class="{block.kind}">{escape_html(block.text)}</p>' if block.kind else _paragraph(block.text)
    if isinstance(block, Items):
        return f"<ul>{''.join(f'<li>{escape_html(item)}</li>' for item in block.items)}</ul>"
    if isinstance(block, Code):
        lines = "\n".join(escape_html_line(line) for line in block.text.rstrip().splitlines())
        return f'<pre tabindex="0"><code>{lines}</code></pre>'
    if isinstance(block, Table):
        return block.html()
    if isinstance(block, Figure):
        caption = f"<figcaption>{escape_html(block.caption)}</figcaption>"
        return f'<figure><div class="drawn">{block.inline}</div>{caption}</figure>'
    if isinstance(block, Picker):
        return _picker(block)
    if isinstance(block, Thumbnails):
        return _thumbnails(block)
    return _parallel(block)


def _paragraph(text: str) -> str:
    return f"<p>{escape_html(text)}</p>"


def escape_html_line(line: str) -> str:
    """A line of a code block: escaped, its indentation kept."""
    bare = line.lstrip(" ")
    return " " * (len(line) - len(bare)) + escape_html(bare)


def _picker(block: Picker) -> str:
    """Menus and all tables. The script shows the table that is picked; without a script the first one is seen."""
    out = [f'<div class="picker" id="{escape_html(block.name)}"><p class="menus">']
    for place, label in enumerate(block.labels):
        values = dict.fromkeys(choice[place] for choice, _ in block.tables)
        options = "".join(f'<option value="{escape_html(value)}">{escape_html(value)}</option>' for value in values)
        out.append(f"<label>{escape_html(label)} <select>{options}</select></label> ")
    out.append('<span class="none" hidden>Not defined for this choice.</span></p>')
    for place, (choice, table) in enumerate(block.tables):
        picks = escape_html(json.dumps(list(choice)))
        out.append(table.html(f' data-pick="{picks}"{" hidden" if place else ""}'))
    out.append("</div>")
    return "".join(out)


def _thumbnails(block: Thumbnails) -> str:
    out = [f'<div class="thumbs{" wide" if block.wide else ""}">']
    for item in block.items:
        image = ""
        if item.data:
            encoded = base64.b64encode(item.data).decode()
            image = f'<img alt="{escape_html(item.title)}" src="data:image/jpeg;base64,{encoded}">'
        out.append(
            f"<figure>{image}<figcaption><b>{escape_html(item.title)}</b><br>{escape_html(item.text)}"
            "</figcaption></figure>"
        )
    out.append("</div>")
    return "".join(out)


def _parallel(block: Parallel) -> str:
    axes = [{"name": name, "values": list(values)} for name, values in block.axes]
    plain = {"axes": axes, "labels": list(block.labels), "lower": block.lower_is_better}
    data = json.dumps(plain, allow_nan=False)
    data = data.replace("<", "\\u003c")  # no text of a trial can end the script element
    return (
        '<figure class="parallel"><div class="drawn"><div class="plot"></div></div>'
        f'<script type="application/json">{data}</script><noscript>This figure needs JavaScript.</noscript>'
        "<figcaption>Each line is a setting; the stronger its colour, the better its rank. Drag along an axis to keep "
        "the lines that pass there, click the axis to let them all back; point at a line to read its trial. The table "
        "below has the same, for the keyboard.</figcaption>"
        f"<details><summary>The same as a table</summary>{block.table.html()}</details></figure>"
    )

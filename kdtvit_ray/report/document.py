"""What a report says, apart from how it looks: sections of blocks, which `html` and `markdown` render."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kdtvit_ray.report.escaping import escape_markdown
from kdtvit_ray.report.style import Figure
from kdtvit_ray.report.tables import Table


@dataclass(frozen=True)
class Text:
    """A paragraph. Kind `lead` is set large, `warning` and `note` are boxed, `missing` says what a section cannot
    show."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Items:
    """A list of plain sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text shown exactly as it is: a file, a command."""

    text: str


@dataclass(frozen=True)
class Picker:
    """Several tables of which the reader sees one and picks another. `labels` name the menus, such as level and metric;
    each table comes with one value for each menu. The first table is seen at the start."""

    name: str
    labels: Sequence[str]
    tables: Sequence[tuple[Sequence[str], Table]]


@dataclass(frozen=True)
class Thumbnail:
    """A small image: `data` is a JPEG, empty where the image cannot be read."""

    title: str
    text: str
    data: bytes = b""


@dataclass(frozen=True)
class Thumbnails:
    """Small images; `wide` ones are shown whole, the others cut to a square."""

    items: Sequence[Thumbnail]
    wide: bool = False


@dataclass(frozen=True)
class Parallel:
    """Parallel coordinates, drawn by the page's script: `axes` are names with their values, numbers or words, one for
    each trial; the last axis is the objective, whose ranks give the colours, and of which the lower is the better where
    that is so. `labels` are the trials' names. `table` has the same for whoever has no pointer or no script."""

    axes: Sequence[tuple[str, Sequence[float | str]]]
    labels: Sequence[str]
    table: Table
    lower_is_better: bool = False


Block = Text | Items | Code | Picker | Thumbnails | Parallel | Table | Figure


@dataclass
class Section:
    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block | None) -> None:
        self.blocks += [block for block in blocks if block is not None]

    def say(self, text: str, kind: str = "") -> None:
        self.blocks.append(Text(text, kind))

    def missing(self, text: str) -> None:
        """Say plainly what this section cannot show, and why."""
        self.blocks.append(Text(text, "missing"))


@dataclass(frozen=True)
class Document:
    title: str
    subtitle: str
    banners: Sequence[str]
    sections: Sequence[Section]

    def tables(self) -> list[Table]:
        found: list[Table] = []
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Table):
                    found.append(block)
                elif isinstance(block, Picker):
                    found += [table for _, table in block.tables]
                elif isinstance(block, Parallel):
                    found.append(block.table)
        return found

    def figures(self) -> list[Figure]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def markdown(document: Document) -> str:
    """The report as one Markdown file. Figures are links to `figures/`; of a picker's tables the first one is printed
    and the others are named."""
    out = [f"# {escape_markdown(document.title)}", escape_markdown(document.subtitle)]
    out += [f"> **{escape_markdown(banner)}**" for banner in document.banners]
    for number, section in enumerate(document.sections, 1):
        out.append(f"## {number}. {escape_markdown(section.title)}")
        out += [_markdown(block) for block in section.blocks]
    return "\n\n".join(part.rstrip("\n") for part in out if part) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Text):
        text = escape_markdown(block.text)
        return {"warning": f"> **{text}**", "note": f"> {text}", "missing": f"*{text}*"}.get(block.kind, text)
    if isinstance(block, Items):
        return "\n".join(f"- {escape_markdown(item)}" for item in block.items)
    if isinstance(block, Code):
        fence = "```"
        while fence in block.text:
            fence += "`"
        return f"{fence}\n{block.text.rstrip()}\n{fence}"
    if isinstance(block, Table):
        return f"**{escape_markdown(block.caption)}**\n\n{block.markdown()}"
    if isinstance(block, Figure):
        return f"![{escape_markdown(block.caption)}](figures/{block.name}.png)"
    if isinstance(block, Picker):
        first = _markdown(block.tables[0][1])
        others = ", ".join(f"`tables/{table.name}.csv`" for _, table in block.tables[1:])
        what = " and ".join(f"{label.lower()}s" for label in block.labels)
        return f"{first}\nThe same for other {what}: {others}." if others else first
    if isinstance(block, Thumbnails):
        return "\n".join(f"- {escape_markdown(item.title)}: {escape_markdown(item.text)}" for item in block.items)
    told = f"{block.table.caption} index.html draws them as parallel coordinates:"
    return f"*{escape_markdown(told)}* `tables/{block.table.name}.csv`"

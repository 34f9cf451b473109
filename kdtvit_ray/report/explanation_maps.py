"""Maps of test images that lie in the study, as the errors section shows them."""

import io

from kdtvit_ray.report.document import Section, Thumbnail, Thumbnails
from kdtvit_ray.results.explanations import Explained, read
from kdtvit_ray.results.findings import Findings

MOST = 12
"""Images at most, so that a page stays small."""


def explained(findings: Findings, section: Section) -> None:
    """Add the maps of the best chain's model, where there are such; say so where they are another model's."""
    study, best = findings.study, findings.best
    found = read(study.folder)
    if found is None or best is None or not found.images:
        return
    if not best.keys or found.stage != best.keys[-1]:
        section.missing(
            f"The maps in {study.folder.explanations}/ are those of another model, {found.trial}; 'kdtvit-ray explain "
            "STUDY' makes them for the best chain."
        )
        return
    items = []
    for each in found.images[:MOST]:
        data = _jpeg(findings, each)
        if data:
            items.append(Thumbnail(each.name, _told(findings, each), data))
    if not items:
        section.missing(f"The maps in {study.folder.explanations}/ cannot be read.")
        return
    dataset = study.dataset
    section.say(
        f"Where the model looks, on {len(items)} test images on which it is most confidently right or wrong. In each: "
        "the image; attention rollout, from dark (least) to yellow (most attention); gradient times activation, brown "
        f"where the image speaks for {dataset.positive}, purple where it speaks for {dataset.negative}. Each map has "
        "its own colour scale, so a map with next to nothing in it looks as strong as any other."
    )
    section.add(Thumbnails(items, wide=True))
    section.say(
        "Maps show where the output is sensitive, not why it is right: they are no evidence that the model looks at "
        "what a pathologist would.",
        "note",
    )


def _told(findings: Findings, each: Explained) -> str:
    dataset = findings.study.dataset
    truth = dataset.words[int(each.positive)]
    named = each.class_name if each.class_name == truth else f"{each.class_name}, {truth}"
    verdict = "right" if each.right else "wrong"
    return f"{each.magnification}X, {verdict}: is {named}; P({dataset.positive}) {each.probability:.2f}"


def _jpeg(findings: Findings, each: Explained) -> bytes:
    """The PNG of an image as a JPEG; b"" where it cannot be read."""
    from PIL import Image

    folder = findings.study.folder
    try:
        with Image.open(io.BytesIO(folder.read(f"{folder.explanations}/{each.file}")), formats=["PNG"]) as png:
            out = io.BytesIO()
            png.convert("RGB").save(out, "JPEG", quality=80)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return b""
    return out.getvalue()

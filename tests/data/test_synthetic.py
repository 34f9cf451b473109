"""The synthetic set: official names, the same pixels however it is made, and tissue whose size, class and stain behave
as they should. All of them are measured on pixels."""

import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kdtvit_ray.data.sources import scan
from kdtvit_ray.data.sources.breakhis import ImageName, breakhis, official_census
from kdtvit_ray.data.synthetic import synthesise
from kdtvit_ray.data.synthetic.generate import ABOUT, census_names, patient_look, render, synthetic_names
from kdtvit_ray.errors import UserError

MAGNIFICATIONS, SUBTYPES = breakhis().magnifications, breakhis().classes
SMALL = (96, 64)
BLIND = np.linalg.pinv(np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]]))
"""Unmixing with the textbook's stains, not with the patient's: the measurement knows no more than a viewer does."""


def test_names_are_official_and_the_folder_scans_clean(tmp_path):
    assert synthesise(tmp_path, patients=3, per_magnification=2, size=SMALL) == 24
    found = scan(tmp_path)
    assert not found.findings
    counts = Counter((image.slide, image.magnification) for image in found.images)
    assert set(counts.values()) == {2}
    assert {magnification for _, magnification in counts} == set(MAGNIFICATIONS)
    assert len({image.stem for image in found.images}) == 3
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]
    with Image.open(tmp_path / found.images[0].path) as image:
        assert (image.size, image.mode) == (SMALL, "RGB")


def test_eight_patients_hold_the_eight_subtypes_and_two_hold_both_classes():
    parsed = [ImageName.parse(name) for name in synthetic_names(8, 1)]
    assert {image.subtype for image in parsed} == set(SUBTYPES)
    assert {ImageName.parse(name).malignant for name in synthetic_names(2, 1)} == {False, True}
    for image in parsed:
        assert image.malignant == (SUBTYPES.index(image.subtype) >= breakhis().first_positive)


def test_census_names_are_the_official_counts():
    names = list(census_names())
    assert len(names) == len(set(names)) == official_census()["total"] == 7909
    parsed = [ImageName.parse(name) for name in names]
    counts = Counter((image.folder, image.magnification) for image in parsed)
    for slide, facts in official_census()["slides"].items():
        for magnification in MAGNIFICATIONS:
            assert counts.pop((slide, magnification), 0) == facts["images"].get(str(magnification), 0)
    assert not counts
    assert "SOB_B_A-14-22549AB-40-001" in names
    by_slide = Counter()
    for image in parsed:
        by_slide[image.folder, image.magnification] = max(by_slide[image.folder, image.magnification], image.sequence)
    assert sum(by_slide.values()) == 7909, "sequence numbers run from 1 without a gap"


def test_an_image_follows_from_seed_and_name_alone():
    names = ["SOB_M_DC-14-90002-400-001", "SOB_B_A-14-90001-40-003", "SOB_M_MC-14-90006-100-002"]
    forwards = {name: render(name, size=SMALL, seed=3) for name in names}
    backwards = {name: render(f"{name}.png", size=SMALL, seed=3) for name in reversed(names)}
    for name in names:
        assert forwards[name].dtype == np.uint8
        assert forwards[name].shape == (SMALL[1], SMALL[0], 3)
        np.testing.assert_array_equal(forwards[name], backwards[name])
        assert np.abs(forwards[name].astype(int) - render(name, size=SMALL, seed=4)).mean() > 3


def test_processes_draw_what_one_process_draws(tmp_path):
    seen: list[tuple[int, int]] = []
    count = synthesise(
        tmp_path,
        patients=4,
        per_magnification=4,
        size=(64, 48),
        seed=5,
        workers=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert count == 64
    assert seen[0] == (0, 64)
    assert seen[-1] == (64, 64)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    for name in list(synthetic_names(4, 4))[::7]:
        np.testing.assert_array_equal(read(tmp_path / f"{name}.png"), render(name, size=(64, 48), seed=5))


def test_another_size_shows_the_same_field():
    name = "SOB_M_DC-14-90002-100-001"
    large, small = render(name, size=(440, 288)), render(name, size=(220, 144))
    shrunk = np.asarray(Image.fromarray(large).resize((220, 144), Image.Resampling.BOX)).astype(float)
    smooth = [ndimage.gaussian_filter(each.mean(2), 4).ravel() for each in (shrunk, small.astype(float))]
    assert np.corrcoef(*smooth)[0, 1] > 0.9


def test_an_interrupted_set_goes_on_and_complete_images_are_kept(tmp_path):
    synthesise(tmp_path, patients=2, per_magnification=1, size=SMALL)
    files = sorted(tmp_path.glob("*.png"))
    before = {file.name: file.read_bytes() for file in files}
    files[0].unlink()
    files[1].write_bytes(before[files[1].name][:-20])
    files[2].write_bytes(b"")
    (tmp_path / f".{files[0].name}.part").write_bytes(b"half")
    past = time.time_ns() - 10**12
    for file in files[1:]:
        os.utime(file, ns=(past, past))
    assert synthesise(tmp_path, patients=2, per_magnification=1, size=SMALL) == 8
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.png")} == before
    redrawn = {file.name for file in files if file.stat().st_mtime_ns != past}
    assert redrawn == {file.name for file in files[:3]}
    assert not list(tmp_path.glob(".*.part"))


def test_a_set_grows_and_does_not_shrink(tmp_path):
    synthesise(tmp_path, patients=2, per_magnification=1, size=SMALL)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*.png")}
    assert synthesise(tmp_path, patients=3, per_magnification=2, size=SMALL) == 24
    after = {file.name: file.read_bytes() for file in tmp_path.glob("*.png")}
    assert before.items() <= after.items()
    with pytest.raises(UserError, match="not asked for"):
        synthesise(tmp_path, patients=2, per_magnification=1, size=SMALL)


def test_folders_and_wishes_that_are_refused(tmp_path):
    synthesise(tmp_path / "a", patients=1, per_magnification=1, size=SMALL)
    for other in ({"seed": 1, "size": SMALL}, {"size": (64, 96)}):
        with pytest.raises(UserError, match="give a new folder"):
            synthesise(tmp_path / "a", patients=1, per_magnification=1, **other)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "SOB_B_A-14-22549AB-40-001.png").write_bytes(b"precious")
    with pytest.raises(UserError, match="not generated"):
        synthesise(tmp_path / "real", patients=1, size=SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write folder"):
        synthesise(tmp_path / "file", patients=1, size=SMALL)
    (tmp_path / "a" / ABOUT).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        synthesise(tmp_path / "a", patients=1, size=SMALL)
    for wish in ({"patients": 0}, {"per_magnification": 0}, {"workers": -1}, {"size": (700, 8)}):
        with pytest.raises(UserError, match="allowed"):
            synthesise(tmp_path / "none", **wish)
    assert not (tmp_path / "none").exists()


def test_structures_grow_with_magnification_as_under_a_microscope():
    """A nucleus at 400X covers (400 / 200)^2 = 4 times its pixels at 200X, and texture is coarser at every step."""
    areas: dict[int, list[float]] = {magnification: [] for magnification in MAGNIFICATIONS}
    lengths: dict[int, list[float]] = {magnification: [] for magnification in MAGNIFICATIONS}
    for name in synthetic_names(10, 1):
        image, pixels = ImageName.parse(name), render(name)
        areas[image.magnification].append(float(np.median(nuclear_areas(pixels))))
        lengths[image.magnification].append(correlation_length(pixels))
    area = {magnification: np.median(values) for magnification, values in areas.items()}
    assert area[40] < area[100] < area[200] < area[400]
    assert 2.3 < area[400] / area[200] < 7
    length = [np.mean(lengths[magnification]) for magnification in MAGNIFICATIONS]
    assert length == sorted(length)
    assert length[-1] > 2 * length[0]


def test_malignant_nuclei_are_larger_and_vary_more_with_overlap_between_patients():
    measured: dict[bool, list[float]] = {False: [], True: []}
    spread: dict[bool, list[float]] = {False: [], True: []}
    for slide in range(16):
        name = list(synthetic_names(slide + 1, 2))[-1]  # a patient's last image is at 400X
        malignant = ImageName.parse(name).malignant
        images = [render(each, size=(350, 230)) for each in (name, f"{name[:-1]}1")]
        radii = np.concatenate([nuclear_radii(image) for image in images])
        measured[malignant].append(float(np.pi * np.percentile(radii, 75) ** 2))
        spread[malignant].append(float(radii.std()))
    assert np.mean(measured[True]) > 1.3 * np.mean(measured[False])
    assert np.mean(spread[True]) > 1.1 * np.mean(spread[False])
    assert min(measured[True]) < max(measured[False])


def test_severity_overlaps_between_the_classes():
    names = [ImageName.parse(name) for name in synthetic_names(400, 1)]
    severity = {image.folder: (image.malignant, patient_look(0, image).severity) for image in names}
    benign = np.array([value for malignant, value in severity.values() if not malignant])
    malign = np.array([value for malignant, value in severity.values() if malignant])
    assert 0.9 < (malign[:, None] > benign[None]).mean() < 0.995
    assert 0.8 < benign.std() < 1.2


def test_stain_varies_more_between_patients_than_within():
    colours = []
    for name in synthetic_names(10, 3):
        if ImageName.parse(name).magnification == 100:
            colours.append(density(render(name, size=(175, 115))).mean((0, 1)))
    patients = np.array(colours).reshape(10, 3, 3)  # patient, image, channel
    between, within = patients.mean(1).var(0), patients.var(1).mean(0)
    assert (between > 2.5 * within).all()


def test_slides_of_one_stem_look_alike_and_other_stems_do_not():
    first, sibling, other = (
        patient_look(0, ImageName.parse(f"SOB_B_A-14-{slide}-40-001")) for slide in ("22549AB", "22549CD", "29960AB")
    )
    assert np.abs(first.stains - sibling.stains).sum() < 0.6 * np.abs(first.stains - other.stains).sum()
    assert np.abs(first.stains - sibling.stains).sum() > 0


def test_tissue_has_the_colours_of_hematoxylin_and_eosin():
    """Pink to purple on white: green is absorbed most, and empty space is nearly as bright as the slide."""
    images = np.stack([render(f"SOB_M_PC-14-{90001 + slide}-100-001", size=(175, 115)) for slide in range(12)])
    red, green, blue = images.reshape(-1, 3).mean(0)
    assert green < 0.9 * min(red, blue)
    brightest = np.percentile(images.min(3).reshape(12, -1), 99.5, axis=1)
    assert np.median(brightest) > 190
    assert np.percentile(images.max(3), 1) < 190


def density(pixels: np.ndarray) -> np.ndarray:
    return -np.log((pixels.astype(float) + 1) / 256)


def nuclear_areas(pixels: np.ndarray) -> np.ndarray:
    """Pixels of each dark blob; blobs that the edge cuts, and specks of a tenth of a large one, are left out."""
    labels, count = ndimage.label(dark(pixels))
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, np.arange(1, count + 1))
    cut = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    whole = sizes[np.setdiff1d(np.flatnonzero(sizes > 8) + 1, cut) - 1]
    return whole[whole > 0.1 * np.percentile(whole, 95)]


def nuclear_radii(pixels: np.ndarray) -> np.ndarray:
    """Half widths of nuclei in pixels, touching ones too: the peaks of the distance to the nearest undyed pixel."""
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(dark(pixels)), 1)
    return distance[(distance == ndimage.maximum_filter(distance, 7)) & (distance > 1.5)]


def dark(pixels: np.ndarray) -> np.ndarray:
    """Where nuclei are: hematoxylin by blind unmixing, above half way to the darkest."""
    stain = ndimage.gaussian_filter((density(pixels) @ BLIND)[..., 0], 1)
    low, high = np.percentile(stain, (30, 99.5))
    return stain > low + 0.55 * (high - low)


def correlation_length(pixels: np.ndarray) -> float:
    """Pixels along a row after which the autocorrelation of density has fallen to a half."""
    signal = density(pixels).mean(2)
    signal = signal - signal.mean()
    power = np.abs(np.fft.rfft(signal, n=2 * signal.shape[1], axis=1)) ** 2
    correlation = np.fft.irfft(power.mean(0))[: signal.shape[1]]
    return float(np.argmax(correlation < 0.5 * correlation[0]))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)

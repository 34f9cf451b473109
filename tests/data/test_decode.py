"""What of an image file is told before its pixels are taken: how many bits a channel it has, what is transparent."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from kdtvit_ray.data.decode import decode
from kdtvit_ray.data.sources import is_image


def png(channels: int, colour: int, bits: int = 16, fill: bytes = b"\0") -> bytes:
    """A PNG file of 40 x 20 pixels by the specification's own terms; `colour` is its colour type, `fill` every byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    line = b"\0" + fill * (40 * channels * bits // 8)
    header = struct.pack(">IIBBBBB", 40, 20, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"PLTE", bytes(6)) if colour == 3 else b"")
        + chunk(b"IDAT", zlib.compress(20 * line))
        + chunk(b"IEND", b"")
    )


def tiff(channels: int, photometric: int, bits: int = 16, planar: int = 1) -> bytes:
    """An uncompressed TIFF file of 40 x 20 pixels; `planar` 2 stores one channel after another."""
    strips = channels if planar == 2 else 1
    at = 8 + 2 + 12 * 9 + 4  # of what does not fit into a tag: bits, then offsets and lengths of the strips
    strip = 40 * 20 * channels * bits // 8 // strips
    pixels = at + 2 * channels + 8 * strips

    def tag(number: int, kind: str, count: int, value: int) -> bytes:
        word = struct.pack("<HH", value, 0) if kind == "H" and count == 1 else struct.pack("<I", value)
        return struct.pack("<HHI", number, 3 if kind == "H" else 4, count) + word

    offsets = [pixels + each * strip for each in range(strips)]
    one = strips == 1
    return (
        struct.pack("<2sHIH", b"II", 42, 8, 9)
        + tag(256, "H", 1, 40)
        + tag(257, "H", 1, 20)
        + tag(258, "H", channels, at)
        + tag(259, "H", 1, 1)
        + tag(262, "H", 1, photometric)
        + tag(273, "I", strips, offsets[0] if one else at + 2 * channels)
        + tag(277, "H", 1, channels)
        + tag(279, "I", strips, strip if one else at + 2 * channels + 4 * strips)
        + tag(284, "H", 1, planar)
        + struct.pack("<I", 0)
        + struct.pack(f"<{channels}H", *[bits] * channels)
        + struct.pack(f"<{2 * strips}I", *offsets, *[strip] * strips)
        + bytes(strip * strips)
    )


def ppm(largest: int) -> bytes:
    return b"P6 40 20 %d\n" % largest + bytes(40 * 20 * 3 * (1 if largest < 256 else 2))


def saved(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 20)).save(file, kind, **options)
    return file.getvalue()


def jpeg2000(bits: int, **options) -> bytes:
    content = bytearray(saved("JPEG2000", **options))
    size = content.index(b"\xff\x4f\xff\x51")
    for channel in range(3):
        content[size + 42 + 3 * channel] = bits - 1
    return bytes(content)


DEEP = {
    "PNG RGB": (png(3, 2), 16),
    "PNG grey and alpha": (png(2, 4), 16),
    "PNG RGBA": (png(4, 6), 16),
    "TIFF RGB": (tiff(3, 2), 16),
    "TIFF RGB, channel after channel": (tiff(3, 2, planar=2), 16),
    "TIFF CMYK": (tiff(4, 5), 16),
    "PPM": (ppm(65535), 16),
    "PPM of a camera": (ppm(4095), 12),
    "SGI": (saved("SGI", bpc=2), 16),
    "JPEG 2000": (jpeg2000(16), 16),
    "JPEG 2000, the code stream alone": (jpeg2000(12, no_jp2=True), 12),
}


@pytest.mark.parametrize("name", DEEP)
def test_colour_of_more_than_8_bits_is_refused(name):
    content, bits = DEEP[name]
    with pytest.raises(ValueError, match=rf"not an 8-bit image in grey, RGB or CMYK \({bits} bits a channel\)"):
        decode(content, 16, "crop")


TAKEN = {
    "PNG grey": png(1, 0, 8),
    "PNG RGB": png(3, 2, 8),
    "PNG grey and alpha": png(2, 4, 8, b"\xff"),
    "PNG RGBA": png(4, 6, 8, b"\xff"),
    **{f"PNG palette of {bits} bits": png(1, 3, bits) for bits in (1, 2, 4, 8)},
    "TIFF RGB": tiff(3, 2, 8),
    "TIFF RGB, channel after channel": tiff(3, 2, 8, planar=2),
    "TIFF CMYK": tiff(4, 5, 8),
    "PPM": ppm(255),
    "PPM of 4 bits": ppm(15),
    "JPEG 2000, the code stream alone": saved("JPEG2000", no_jp2=True),
    **{kind: saved(kind) for kind in ("SGI", "JPEG2000", "JPEG", "BMP", "GIF", "WEBP")},
}


@pytest.mark.parametrize("name", TAKEN)
def test_colour_of_8_bits_or_less_is_taken(name):
    assert decode(TAKEN[name], 16, "crop")[0].shape == (16, 16, 3)


# -- transparency ------------------------------------------------------------------------------------------------------


def stored(image: Image.Image, kind: str = "PNG", **options) -> np.ndarray:
    """The pixels that are kept of a square image, at its own size."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return decode(file.getvalue(), image.width, "crop")[0].astype(int)


def veiled(mode: str = "RGBA") -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """An image with every alpha from 0 to 255, its colours (16, 16, 3) and its alpha (16, 16, 1)."""
    drawn = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    made = Image.fromarray(drawn).convert(mode.removesuffix("A"))
    colours = np.asarray(made.convert("RGB")).astype(int)
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    made.putalpha(Image.fromarray(alpha))
    assert made.mode == mode
    return made, colours, alpha[..., None].astype(int)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "TIFF")])
def test_what_is_transparent_shows_white_and_what_is_not_stays(mode, kind):
    image, colours, alpha = veiled(mode)
    found = stored(image, kind)
    assert (found[0, 0] == 255).all()
    assert (found[15, 15] == colours[15, 15]).all()
    assert np.abs(found - (colours * alpha + 255 * (255 - alpha)) / 255).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_colour_that_is_marked_transparent_shows_white(mode):
    image = Image.new("RGB", (16, 16), (200, 100, 150))
    image.paste((0, 0, 0), (0, 0, 16, 8))
    image = image.convert("L").convert(mode) if mode != "RGB" else image
    black = image.getpixel((0, 0))
    found = stored(image, transparency=black)
    assert (found[:8] == 255).all()
    assert (found[8:] == np.asarray(image.convert("RGB"))[8:]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_pixels_of_an_opaque_image_stay(mode):
    image, colours, _ = veiled(mode)
    image.putalpha(255)
    assert (stored(image) == colours).all()


def test_an_image_that_is_transparent_all_over_is_refused():
    image, *_ = veiled()
    image.putalpha(0)
    with pytest.raises(ValueError, match="transparent all over, nothing of it can be seen"):
        stored(image)


def test_what_a_camera_turned_is_turned_with_its_transparency():
    image, *_ = veiled()
    about = Image.Exif()
    about[0x0112] = 3
    assert (stored(image, exif=about) == stored(image)[::-1, ::-1]).all()


def test_a_large_image_and_odd_metadata_are_read_without_a_warning(tmp_path):
    """In a process of its own: pytest shows all warnings."""
    Image.new("RGB", (40, 20)).save(tmp_path / "large.png")
    image, exif = photograph("red", 6)
    image.resize((40, 20)).save(tmp_path / "metadata.jpg", exif=exif.tobytes()[:20])
    code = f"""
from pathlib import Path
from PIL import Image
from kdtvit_ray.data.decode import decode

Image.MAX_IMAGE_PIXELS = 500  # Pillow refuses twice as many
for name in ("large.png", "metadata.jpg"):
    decode((Path({str(tmp_path)!r}) / name).read_bytes(), 16, "crop")
"""
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def photograph(colour, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (60, 40), colour)
    image.paste("white", (0, 0, 30, 40))
    return image, exif


@pytest.mark.parametrize("orientation", [1, 6])
def test_of_a_cameras_several_images_the_first_is_the_photograph(orientation):
    image, exif = photograph("red", orientation)
    several, alone = io.BytesIO(), io.BytesIO()
    others = [Image.new("RGB", (60, 40), "blue"), Image.new("RGB", (30, 20), "green")]
    image.save(several, "MPO", save_all=True, append_images=others, exif=exif, quality=95)
    image.save(alone, "JPEG", exif=exif, quality=95)
    with Image.open(several) as read:
        assert (read.format, read.n_frames) == ("MPO", 3)
    found, full = decode(several.getvalue(), 16, "squash")
    assert full.size == ((60, 40) if orientation == 1 else (40, 60))
    assert (found == decode(alone.getvalue(), 16, "squash")[0]).all()


THUMBNAIL = saved("JPEG")
JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "with marks to restart at": {"restart_marker_rows": 1},
    "with a thumbnail": {"comment": THUMBNAIL},
    "progressive with a thumbnail": {"progressive": True, "comment": THUMBNAIL},
    "of a camera": {"format": "MPO", "save_all": True},
}


def noise_as_jpeg(**options) -> bytes:
    """A JPEG file whose 64 x 48 pixels take nearly all of it; of a camera, one with a second image behind the first."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    image, file = Image.fromarray(pixels), io.BytesIO()
    more = {"append_images": [image.rotate(180)]} if "save_all" in options else {}
    image.save(file, **{"format": "JPEG", "quality": 95, **options, **more})
    return file.getvalue()


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_with_zeros_at_the_place_of_its_rest_is_damaged(name):
    whole = noise_as_jpeg(**JPEGS[name])
    first = whole.index(b"\xff\xd9\xff\xd8") if name == "of a camera" else len(whole)
    for kept in np.linspace(first // 2, first - 3, 9, dtype=int):
        with pytest.raises(ValueError, match="truncated or damaged"):
            decode(whole[:kept] + bytes(len(whole) - kept), 16, "crop")
    with pytest.raises(ValueError, match="truncated or damaged"):  # its end is that of the second image, or of nothing
        decode(whole[: first - 300] + bytes(300) + whole[first + 2 :], 16, "crop")
    for behind in (b"", bytes(40), THUMBNAIL, b"\xff\xda\0"):
        decode(whole + behind, 16, "crop")


def test_of_a_cameras_several_images_a_damaged_copy_does_not_matter():
    whole = noise_as_jpeg(**JPEGS["of a camera"])
    cut = (len(whole) + whole.index(b"\xff\xd9\xff\xd8")) // 2
    assert (decode(whole[:cut] + bytes(900), 16, "crop")[0] == decode(whole, 16, "crop")[0]).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # as `decode` does for its process; pytest shows all
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_metadata_that_cannot_be_read_turn_no_image(kind):
    image, exif = photograph("red", 6)

    def full(**about):
        file = io.BytesIO()
        image.save(file, kind, **about)
        return decode(file.getvalue(), 16, "crop")[1]

    assert full(exif=exif.tobytes()).size == (40, 60)
    for wrong in (exif.tobytes()[:20], b"Exif\0\0no" * 9):
        assert full(exif=wrong).tobytes() == full().tobytes()


def test_no_format_is_read_that_is_no_image_or_starts_another_program(monkeypatch):
    ran = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments, **options: ran.append(arguments))
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ValueError, match=r"^no image that can be decoded$"):
        decode(drawing, 16, "crop")
    assert not ran
    for name in ("a.eps", "a.ps", "a.h5", "a.hdf", "a.fits", "a.mpg", "a.mpeg", "a.grib", "a.bufr", "a.wmf", "a.emf"):
        assert not is_image(name)
    for name in ("a.png", "a.JPG", "a.tif", "a.webp", "a.jp2", "a.bmp", "a.gif", "a.ppm", "a.tga", "a.avif"):
        assert is_image(name)

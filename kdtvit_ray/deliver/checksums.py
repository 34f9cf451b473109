"""Checksums of images' pixels, by which a model knows the images again that it was trained or chosen on: figures on
them say nothing of new patients. They tell nobody who the patients are."""

import hashlib
from base64 import b64decode, b64encode

import numpy as np

BYTES = 8
"""Of one checksum. That a new image has that of one of 8,000 others has a probability of 4e-16."""


def checksum(pixels: np.ndarray) -> bytes:
    """Of an image as its model takes it, uint8 (S, S, 3)."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=BYTES).digest()


def packed(checksums: frozenset[bytes]) -> str:
    """Checksums as text, sorted."""
    return b64encode(b"".join(sorted(checksums))).decode()


def unpacked(text: str) -> frozenset[bytes]:
    """What `packed` has made text of. Raises `ValueError` for any other text."""
    content = b64decode(text, validate=True)
    if len(content) % BYTES:
        raise ValueError("checksums of images that are cut off")
    return frozenset(content[start : start + BYTES] for start in range(0, len(content), BYTES))

"""Image files of every kind that data sets hold, as 8-bit RGB in the frame their boxes are meant in."""

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.Image import Transpose
from torch import Tensor

# What Pillow and its decoders raise for files that are no images, or only the first part of one.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
# By EXIF's orientation. `ImageOps.exif_transpose` also writes EXIF anew, and fails where some of it is odd.
TURNS: dict[Any, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def read_image(path: Path, entry: dict[str, Any]) -> Tensor:
    """uint8 RGB (3, H, W) of the size that `entry` gives.

    Greyscale, palette, CMYK and 16-bit images are converted, transparency is dropped, and images are
    turned as their EXIF data says, as annotation tools show them; one that is only then of the wrong size
    is left as it is. ValueError names the file when it is damaged or of another size.
    """
    try:
        with Image.open(path) as image:
            _check_size(path, entry, image)
            turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
            upright = image if turn is None else image.transpose(turn)
            chosen = upright if upright.size == (entry["width"], entry["height"]) else image
            return torch.from_numpy(_rgb(chosen)).permute(2, 0, 1).contiguous()
    except UNREADABLE as error:
        raise _about(path, entry, error) from error


def upright_size(path: Path, entry: dict[str, Any]) -> tuple[int, int]:
    """Width and height as annotation tools show the image. ValueError when it is none."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except UNREADABLE as error:
        raise _about(path, entry, error) from error


def check_headers(folder: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Every file is an image of the size its entry gives, by its header: a fraction of a millisecond each.

    ValueError names the first that is not. What follows the header shows when an image is read.
    """

    def check(entry: dict[str, Any]) -> None:
        path = folder / entry["file_name"]
        try:
            with Image.open(path) as image:
                _check_size(path, entry, image)
        except UNREADABLE as error:
            raise _about(path, entry, error) from error

    with warnings.catch_warnings(), ThreadPoolExecutor(8) as threads:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_size` refuses these
        for _ in threads.map(check, entries, chunksize=64):
            pass


def _check_size(path: Path, entry: dict[str, Any], image: Image.Image) -> None:
    wanted, limit = (entry["width"], entry["height"]), Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"has {image.width} x {image.height} pixels, more than the {limit} that are safe to decode")
    if sorted(image.size) != sorted(wanted):
        raise ValueError(f"is {image.width} x {image.height} pixels, its entry says {wanted[0]} x {wanted[1]}")


def _about(path: Path, entry: dict[str, Any], error: Exception) -> ValueError:
    return ValueError(f"{path}: image {entry['id']}: not a usable image ({error}); replace it or drop its entry")


def _rgb(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (H, W, 3). Pillow would clip 16 bits to 8 instead of scaling them."""
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))

"""Image files: every kind comes out as a viewer shows it, and a damaged one by its name."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from ghm.data.images import check_headers, read_image

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (130, 130, 130)


def entry(size, name="image"):
    return {"id": 5, "file_name": name, "width": size[0], "height": size[1]}


def pixels(path, size):
    """The image as (H, W, 3)."""
    image = read_image(path, entry(size, path.name))
    assert str(image.dtype) == "torch.uint8"
    assert image.is_contiguous()
    check_headers(path.parent, [entry(size, path.name)])
    return image.permute(1, 2, 0).numpy()


def grey(values, dtype):
    return Image.fromarray(np.array([values], dtype=dtype))


def palette():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    return image


@pytest.mark.parametrize(
    ("image", "form", "options", "expected"),
    [
        (grey([0, 130], np.uint8), "png", {}, [(0, 0, 0), GREY]),
        (Image.merge("LA", [grey([0, 130], np.uint8), grey([255, 0], np.uint8)]), "png", {}, [(0, 0, 0), GREY]),
        (palette(), "png", {}, [RED, BLUE]),
        (palette(), "gif", {}, [RED, BLUE]),
        (palette(), "png", {"transparency": 1}, [RED, BLUE]),
        (palette(), "png", {"transparency": b"\x00\x80"}, [RED, BLUE]),
        (Image.fromarray(np.array([[(*RED, 255), (*GREEN, 0)]], dtype=np.uint8)), "png", {}, [RED, GREEN]),
        (Image.fromarray(np.array([[False, True]])), "png", {}, [(0, 0, 0), (255, 255, 255)]),
        (Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "jpeg", {"quality": 100}, [RED, RED]),
        (Image.fromarray(np.array([[RED, GREEN]], dtype=np.uint8)), "bmp", {}, [RED, GREEN]),
    ],
    ids=["L", "LA", "P", "gif", "P transparent", "P half transparent", "RGBA", "1 bit", "CMYK", "RGB"],
)
def test_every_mode_becomes_rgb(tmp_path, image, form, options, expected):
    image.save(tmp_path / "image", form, **options)
    shown = pixels(tmp_path / "image", (2, 1))
    assert np.abs(shown.astype(int) - [expected]).max() <= (3 if form == "jpeg" else 0)


@pytest.mark.parametrize(
    ("values", "dtype", "form"),
    [
        ([0, 255, 256, 32768, 65535], np.uint16, "png"),
        ([0, 255, 256, 32768, 65535], np.dtype(">u2"), "tiff"),
        ([-7, 255, 256, 32768, 70000], np.int32, "tiff"),
    ],
)
def test_16_bits_are_scaled_not_clipped(tmp_path, values, dtype, form):
    grey(values, dtype).save(tmp_path / "image", form)
    shown = pixels(tmp_path / "image", (5, 1))
    assert shown.tolist() == [[[value] * 3 for value in (0, 0, 1, 128, 255)]]


# Turned images

# What the file of an upright picture holds, by EXIF's definition: 6 says "row 0 is the right side, column 0 the top".
STORED = {
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.swapaxes(0, 1),
    6: lambda picture: picture[:, ::-1].swapaxes(0, 1),
    7: lambda picture: picture[::-1, ::-1].swapaxes(0, 1),
    8: lambda picture: picture[::-1].swapaxes(0, 1),
}
# Four colours in 24 x 16 pixels, each corner told from the others.
PICTURE = np.array([[RED, GREEN, GREEN], [BLUE, GREY, GREEN]], dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def save_turned(path, orientation, form, picture=PICTURE, description=None):
    stored, exif = STORED[orientation](picture), Image.Exif()
    exif[0x0112] = orientation
    if description:
        exif[0x010E] = description
    lossless = {} if form == "png" else {"quality": 100, "subsampling": 0}
    Image.fromarray(np.ascontiguousarray(stored)).save(path, form, exif=exif, **lossless)
    return stored


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_an_image_is_turned_as_viewers_turn_it(tmp_path, orientation, form):
    save_turned(tmp_path / "image", orientation, form)
    assert np.abs(pixels(tmp_path / "image", (24, 16)).astype(int) - PICTURE).max() <= 3


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_image_whose_entry_has_the_unturned_size_is_left_unturned(tmp_path, orientation):
    stored = save_turned(tmp_path / "image", orientation, "png")
    assert np.array_equal(pixels(tmp_path / "image", (16, 24)), stored)


def test_a_square_image_is_turned(tmp_path):
    save_turned(tmp_path / "image", 6, "png", PICTURE[:, :16])
    assert np.array_equal(pixels(tmp_path / "image", (16, 16)), PICTURE[:, :16])


def test_an_image_whose_exif_is_odd_elsewhere_is_turned(tmp_path):
    save_turned(tmp_path / "image", 6, "jpeg", description="hello")
    stored = (tmp_path / "image").read_bytes()
    # The text is now the image's width, which is no text: Pillow cannot write that.
    (tmp_path / "image").write_bytes(stored.replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02"))
    assert np.abs(pixels(tmp_path / "image", (24, 16)).astype(int) - PICTURE).max() <= 3


# Refusing


def png(width, height, data=b""):
    """A PNG whose header says this size, whatever `data` holds."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def refused(folder, size, said, reads, name="image"):
    """That the header check (where it can tell) and the reading name file and image in one line."""
    path, wanted = folder / name, entry(size, name)
    for check in (lambda: read_image(path, wanted), lambda: check_headers(folder, [wanted]))[: 2 - reads]:
        with pytest.raises(ValueError, match=said) as refusal:
            check()
        assert str(refusal.value).startswith(f"{path}: image 5: not a usable image (")
        assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("size", [(24, 17), (25, 16), (12, 8), (20, 20)])
def test_an_image_of_another_size_is_named_with_both_sizes(tmp_path, size):
    Image.fromarray(PICTURE).save(tmp_path / "image", "png")
    refused(tmp_path, size, f"is 24 x 16 pixels, its entry says {size[0]} x {size[1]}", reads=False)


@pytest.mark.parametrize("content", [b"no image", b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"<svg/>"])
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "image").write_bytes(content)
    refused(tmp_path, (24, 16), None, reads=False)


def test_a_missing_image_is_named(tmp_path):
    refused(tmp_path, (24, 16), "No such file", reads=False)


@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "tiff", "bmp", "webp"])
def test_a_truncated_image_is_named_on_reading(tmp_path, form):
    path = tmp_path / "image"
    Image.effect_noise((24, 16), 80).convert("RGB").save(path, form)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    refused(tmp_path, (24, 16), None, reads=True)


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_000, 10_000), (1, 2**31 - 1)])
def test_an_image_too_large_to_decode_is_refused_by_its_header(tmp_path, monkeypatch, size):
    (tmp_path / "image").write_bytes(png(*size))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="pixels"):
            check_headers(tmp_path, [entry(size)])
    assert warned == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        refused(tmp_path, size, "pixels", reads=False)


def test_the_largest_image_that_is_safe_passes_its_header_check(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    for size, passes in (((30, 20), True), ((601, 1), False)):
        (tmp_path / "image").write_bytes(png(*size))
        if passes:
            check_headers(tmp_path, [entry(size)])
        else:
            with pytest.raises(ValueError, match="601 x 1 pixels, more than the 600 that are safe"):
                check_headers(tmp_path, [entry(size)])


def test_images_may_have_any_size_where_pillows_limit_is_lifted(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "image").write_bytes(png(30_000, 30_000))
    check_headers(tmp_path, [entry((30_000, 30_000))])


def test_one_bad_header_among_many_is_found(tmp_path):
    for number in range(300):
        Image.fromarray(PICTURE[: 15 if number == 250 else 16]).save(tmp_path / str(number), "bmp")
    entries = [entry((24, 16), str(number)) | {"id": number} for number in range(300)]
    check_headers(tmp_path, entries[:250] + entries[251:])
    with pytest.raises(ValueError, match=f"^{tmp_path}/250: image 250: not a usable image"):
        check_headers(tmp_path, entries)

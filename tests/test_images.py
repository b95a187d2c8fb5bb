"""python -m pytest tests/test_images.py: images found by id, decoded whole or refused, and always the same pixels."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from evalkit.errors import DataError, ImageError
from evalkit.images import AliasImages, FolderImages, RowImages, check_name, image_key, image_size, open_image
from tests.official import write_image
from tests.support import shared


def jpeg(size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# --- by id -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "asked"),
    [
        ("val2014/COCO_val2014_000000000139.jpg", "139"),
        ("COCO_test2015_000000000139.jpg", "139"),
        ("deep/er/000000000139.jpg", "139"),
        ("139.png", "139"),
        ("139.JPEG", "139"),
        ("train2014/COCO_train2014_000000000139.jpg", "COCO_train2014_000000000139_16.jpg"),
        ("000000000139.jpg", "val2014/COCO_val2014_000000000139.jpg"),
        ("0013ea2087020901.jpg", "0013ea2087020901.jpg"),
        ("images/0013ea2087020901.jpg", "0013ea2087020901"),
        ("n161313.jpg", "n161313"),
        ("a.b.c.jpg", "a.b.c"),
        ("0139.jpg", "0139"),
    ],
)
def test_an_image_is_found_by_id_name_or_prefix_in_any_subfolder(tmp_path: Path, file: str, asked: str) -> None:
    write_image(tmp_path / file)
    store = FolderImages(tmp_path)
    assert store.missing([asked, "nope"]) == ["nope"]
    assert store.open(asked).size == (40, 30)
    assert store.size(asked) == (40, 30)


def test_ids_are_not_found_by_half(tmp_path: Path) -> None:
    write_image(tmp_path / "1390.jpg")
    write_image(tmp_path / "x139.jpg")
    (tmp_path / "139.txt").write_text("no image")
    assert FolderImages(tmp_path).missing(["139", "39", "0"]) == ["139", "39", "0"]


def test_a_full_name_beats_an_id_and_the_first_in_order_wins(tmp_path: Path) -> None:
    write_image(tmp_path / "b/COCO_val2014_000000000139.jpg", (10, 10))
    write_image(tmp_path / "a/COCO_train2014_000000000139.jpg", (20, 20))
    store = FolderImages(tmp_path)
    assert store.open("139").size == (20, 20)
    assert store.open("COCO_val2014_000000000139.jpg").size == (10, 10)


def test_a_missing_image_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing below .*: 139; complete the folder or give data\.images=DIR"):
        FolderImages(tmp_path).open("139")
    with pytest.raises(DataError, match=r"folder of images .*gone does not exist"):
        FolderImages(tmp_path / "gone").missing(["139"])


@pytest.mark.parametrize(
    "name", ["../139.jpg", "/etc/passwd", "a/../../139", "..\\139.jpg", "C:\\139.jpg", "\\\\host\\x", "a\0b"]
)
def test_names_from_a_dataset_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "139.jpg")
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(DataError, match="leaves the folder of images"):
        FolderImages(folder).open(name)
    with pytest.raises(DataError, match="leaves the folder of images"):
        check_name(name)


def test_links_out_of_the_folder_are_not_followed_and_said_so(tmp_path: Path) -> None:
    secret = write_image(tmp_path / "secret/139.jpg")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "139.jpg").symlink_to(secret)
    (folder / "more").symlink_to(secret.parent)
    with pytest.raises(ImageError, match=r"links that lead out of it are not followed: 139\.jpg, more"):
        FolderImages(folder).open("139")


def test_links_within_the_folder_and_to_it_are_fine(tmp_path: Path) -> None:
    real = write_image(tmp_path / "real/a/139.jpg")
    (tmp_path / "real/285.jpg").symlink_to(real)
    (tmp_path / "real/a/loop").symlink_to(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert FolderImages(tmp_path / "link").missing(["139", "285"]) == []


@given(st.integers(0, 999_999_999_999))
def test_every_spelling_of_a_coco_id_has_one_key(number: int) -> None:
    for name in (f"COCO_val2014_{number:012d}.jpg", f"x/COCO_train2014_{number:012d}_7.png", f"{number:012d}", number):
        assert image_key(name) == str(number)


@given(st.text())
def test_no_name_crashes_and_none_that_passes_leads_out(name: str) -> None:
    image_key(name)
    try:
        check_name(name)
    except DataError:
        return
    assert (Path("/images") / name).resolve().is_relative_to("/images")


def test_an_alias_opens_the_first_question_of_an_image(tmp_path: Path) -> None:
    write_image(tmp_path / "2971475.jpg")
    store = AliasImages(FolderImages(tmp_path), {"297147": "2971475", "1": "11"})
    assert store.open("297147").size == (40, 30)
    assert store.missing(["297147", "1", "2"]) == ["1", "2"]


# --- whole or refused ------------------------------------------------------------------------------------------------


def test_a_truncated_jpeg_is_refused_at_any_length() -> None:
    data = jpeg()
    assert open_image(data, "whole").size == (64, 48)
    for length in [0, 1, 2, 20, *range(100, len(data) - 2, len(data) // 40)]:
        with pytest.raises(ImageError, match="image '139' cannot be decoded whole"):
            open_image(data[:length], "139")


def test_a_truncated_photograph_is_refused() -> None:
    path = next(iter(sorted(shared("data/images/coco").rglob("*.jpg"))))
    data = path.read_bytes()
    open_image(data, path.name)
    for share in (0.1, 0.5, 0.9, 0.99):
        with pytest.raises(ImageError, match="cannot be decoded whole"):
            open_image(data[: int(len(data) * share)], path.name)


def test_a_truncated_image_is_refused_even_where_another_package_allowed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = jpeg()
    with pytest.raises(ImageError):
        open_image(data[: len(data) // 2], "139")


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8\xff", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="image 'x' cannot be decoded whole"):
        open_image(data, "x")
    with pytest.raises(ImageError, match="image 'x' has no header"):
        image_size(data, "x")


def test_a_png_with_a_damaged_chunk_is_refused() -> None:
    data = bytearray(png(Image.effect_noise((64, 64), 50)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError):
        open_image(bytes(data), "x")


def test_an_image_over_the_limit_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(Image.new("RGB", (100, 100)))
    assert open_image(data, "x", max_pixels=10_000).size == (100, 100)
    monkeypatch.setattr(Image.Image, "convert", lambda *args: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="image 'x' has 100 x 100 pixels, more than the 9,999 allowed"):
        open_image(data, "x", max_pixels=9_999)


def test_a_decompression_bomb_is_refused_by_default() -> None:
    for side in (10_000, 20_000):  # over our limit; over Pillow's own
        data = png(Image.new("1", (side, side)))
        assert len(data) < 100_000
        with pytest.raises(ImageError, match="pixels"):
            open_image(data, "bomb")


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_decoder(data: bytes) -> None:
    with pytest.raises(ImageError):
        open_image(data, "x")


# --- always the same pixels ------------------------------------------------------------------------------------------


def test_exif_orientation_is_not_applied() -> None:
    image = Image.new("RGB", (40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert open_image(buffer.getvalue(), "x").size == (40, 30)


def _pixel(image: Image.Image) -> object:
    return open_image(png(image), "x").getpixel((0, 0))


def test_every_mode_becomes_rgb() -> None:
    assert _pixel(Image.new("L", (2, 2), 77)) == (77, 77, 77)
    assert _pixel(Image.new("1", (2, 2), 1)) == (255, 255, 255)
    assert _pixel(Image.new("LA", (2, 2), (77, 0))) == (77, 77, 77)
    assert _pixel(Image.new("RGBA", (2, 2), (10, 20, 30, 0))) == (10, 20, 30)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert _pixel(palette) == (10, 20, 30)


def test_16_bit_grey_keeps_its_upper_bits() -> None:
    image = Image.new("I;16", (2, 2))
    image.putpixel((0, 0), 0x4DFF)
    assert _pixel(image) == (0x4D, 0x4D, 0x4D)


def test_cmyk_is_what_pillow_makes_of_it() -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(buffer, "JPEG", quality=100)
    opened = open_image(buffer.getvalue(), "x")
    assert opened.mode == "RGB"
    assert opened.tobytes() == Image.open(buffer).convert("RGB").tobytes()


def test_the_first_frame_of_an_animation_counts() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    assert open_image(buffer.getvalue(), "x").getpixel((0, 0)) == (255, 0, 0)


# --- rows of a hub dataset -------------------------------------------------------------------------------------------


def test_rows_open_by_id_the_first_row_of_an_image_serves() -> None:
    cells = [{"bytes": png(Image.new("RGB", (4, 3)))}, {"bytes": png(Image.new("RGB", (9, 9)))}, {"bytes": None}]
    names = ["COCO_train2014_000000000139_1.jpg", "COCO_train2014_000000000139_2.jpg", "285"]
    store = RowImages(names, lambda row: cells[row])
    assert store.open("139").size == (4, 3)
    assert store.size("139") == (4, 3)
    assert store.missing(["139", "285", "632"]) == ["632"]
    with pytest.raises(ImageError, match="'632' is in no row"):
        store.open("632")
    with pytest.raises(ImageError, match="'285' holds no image bytes"):
        store.open("285")

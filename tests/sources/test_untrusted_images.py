"""What a data folder holds is decoded as an image or refused; no other program is started for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from curlfx.errors import DataError
from curlfx.sources.folder import FORMATS, opened

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_postscript_is_no_image_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("another program was started"))
    path = tmp_path / "0.jpg"
    path.write_bytes(POSTSCRIPT)
    with Image.open(path) as found:  # the library itself would
        assert found.format == "EPS"
    with pytest.raises(DataError, match=r"0\.jpg is no readable image"):
        opened(path, 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_images_are_read_whatever_they_are_called(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    Image.new("RGB", (8, 6), (255, 0, 0)).save(path, format=kind)
    image = opened(path, 3)
    assert (image.size, image.mode) == ((8, 6), "RGB")


def test_two_pictures_of_a_camera_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "0.jpg"
    first, second = (Image.new("RGB", (8, 6), (level, 0, 0)) for level in (255, 0))
    first.save(path, format="MPO", save_all=True, append_images=[second])
    assert opened(path, 3).size == (8, 6)


def test_an_image_that_unfolds_into_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = tmp_path / "0.png"
    Image.new("L", (8, 8)).save(path)
    with pytest.raises(DataError, match=r"0\.png is no readable image .*decompression bomb"):
        opened(path, 1)

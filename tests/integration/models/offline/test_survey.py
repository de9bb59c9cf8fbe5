"""models/offline/survey.py: statistics over every pixel as the service decodes it, with any number of processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from models.images.preprocessing import Transform, decode_image, preprocess
from models.images.samples import draw
from models.interface.request import ImageLimits
from models.offline.survey import Survey, survey

_MANY_BYTES = 2**30
_SERVED = Transform(36, 32, "bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of every kind that differ in what decoding them takes."""
    made = tmp_path_factory.mktemp("pictures")
    turned = Image.Exif()
    turned[0x0112] = 6
    draw("clock").resize((300, 200)).save(made / "a.jpg", exif=turned)
    draw("crossword").save(made / "b.png")
    draw("traffic-light").resize((90, 40)).save(made / "c.webp", lossless=True)
    draw("clock").convert("L").filter(ImageFilter.BLUR).save(made / "d.jpg", quality=60)
    Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)).save(made / "e.tif")
    half = draw("clock").convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(half.size))
    half.save(made / "f.png")
    return made


def _surveyed(files: list[str], transform: Transform | None = None, workers: int = 0) -> Survey:
    found = Survey()
    for path, picture in survey(
        files, limits=ImageLimits(), max_file_bytes=_MANY_BYTES, transform=transform, workers=workers
    ):
        found.add(path, picture)
    return found


def _files(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.iterdir())]


def _pixels(folder: Path, transform: Transform | None) -> np.ndarray:
    """All of them, (N, 3) float64 of 0..1, as NumPy would have them."""
    encoded = [path.read_bytes() for path in sorted(folder.iterdir())]
    pictures = [
        decode_image(file, ImageLimits()) if transform is None else preprocess(file, transform, ImageLimits())
        for file in encoded
    ]
    return np.concatenate([picture.permute(1, 2, 0).reshape(-1, 3).numpy() for picture in pictures]) / 255


@pytest.mark.parametrize("transform", [None, _SERVED], ids=["in full size", "as served"])
def test_mean_and_deviation_equal_numpys_over_all_pixels(folder: Path, transform: Transform | None) -> None:
    found = _surveyed(_files(folder), transform)
    pixels = _pixels(folder, transform)

    assert found.pixels == len(pixels)
    assert found.mean == pytest.approx(pixels.mean(axis=0).tolist(), abs=1e-9)
    assert found.std == pytest.approx(pixels.std(axis=0).tolist(), abs=1e-9)


def test_worker_processes_give_the_same_statistics(folder: Path) -> None:
    alone, together = _surveyed(_files(folder)), _surveyed(_files(folder), workers=2)

    assert (together.histogram == alone.histogram).all()
    assert (together.sizes, together.formats) == (alone.sizes, alone.formats)


def test_sizes_are_as_displayed_and_formats_as_detected(folder: Path) -> None:
    found = _surveyed(_files(folder), _SERVED)

    assert found.formats == {"JPEG": 2, "PNG": 2, "WebP": 1, "TIFF": 1}
    assert found.sizes == {(200, 300): 1, (400, 400): 3, (90, 40): 1, (256, 256): 1}


def test_broken_files_are_listed_with_the_servers_reasons(tmp_path: Path, image_file: Callable[..., bytes]) -> None:
    whole = image_file(draw("clock"), "PNG")
    (tmp_path / "a.png").write_bytes(whole[:2000])
    (tmp_path / "b.png").write_bytes(whole)
    (tmp_path / "c.png").write_bytes(b"")
    (tmp_path / "d.png").write_bytes(b"no image")
    (tmp_path / "e.png").write_bytes(image_file(Image.new("RGB", (1, 200)), "PNG"))
    missing = str(tmp_path / "f.png")
    found = _surveyed([*_files(tmp_path), missing], workers=1)

    assert found.images == 1
    reasons = {Path(path).name: reason for path, reason in found.broken.items()}
    assert list(reasons) == ["a.png", "c.png", "d.png", "e.png", "f.png"]
    assert reasons["a.png"].startswith("The PNG image cannot be decoded")
    assert reasons["c.png"] == "The image has no bytes."
    assert reasons["e.png"].startswith("The image is 1 x 200")
    assert reasons["f.png"] == "The file cannot be read: No such file or directory."


def test_an_oversized_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as sparse:
        sparse.truncate(_MANY_BYTES + 1)

    assert list(_surveyed(_files(tmp_path)).broken.values()) == [f"The image is larger than {_MANY_BYTES} bytes."]

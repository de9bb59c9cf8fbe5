"""int8 is calibrated on the user's own images, and kept apart by them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from models.backends import BackendOptions, place
from models.backends.openvino import OpenVinoBackend
from models.images.preprocessing import decode_image
from models.images.samples import draw, encode
from models.interface.errors import StartError
from models.interface.request import ImageLimits
from models.interface.telemetry import Telemetry
from models.loading.calibration import Calibration
from models.loading.load import LoadedModel, load
from models.networks.specs import ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

TURNS = (0, 90, 180, 270)
SAMPLES = ("clock", "traffic-light", "crossword")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn samples, each turned four ways, and a file that is no image."""
    made = tmp_path_factory.mktemp("calibration")
    for sample in SAMPLES:
        for degrees in TURNS:
            (made / f"{sample}-{degrees}.png").write_bytes(encode(draw(sample).rotate(degrees), "PNG"))
    (made / "notes.txt").write_text("taken in May")
    return made


def test_int8_gives_the_classes_of_fp32_for_the_drawn_samples_with_slightly_different_probabilities(
    default_model: LoadedModel,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    placement = place("cpu", "int8", "openvino")
    calibration = Calibration.of(folder)
    model = dataclasses.replace(default_model, placement=placement, calibration=calibration)
    served = OpenVinoBackend(model, BackendOptions(max_batch_size=4, cache_folder=tmp_path))
    shaped = [
        default_model.transform.shape(decode_image(encode(draw(sample), "PNG"), ImageLimits())) for sample in SAMPLES
    ]
    pixels = torch.stack(shaped).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = served.run(pixels)
        expected = model.network(model.normalize(pixels))

    assert found.logits.argmax(1).tolist() == expected.logits.argmax(1).tolist()
    alike = torch.nn.functional.cosine_similarity(found.features, expected.features)
    assert alike.min() > 0.9, alike
    # Not fp32 under another name.
    assert not torch.allclose(found.logits, expected.logits, rtol=1e-3)
    assert "notes.txt is left out" in caplog.text
    assert "12 images only" in caplog.text
    # Where a command's results are read from.
    assert not capfd.readouterr().out
    # Made once: the next start finds it under the digest of its images.
    [kept] = tmp_path.glob(f"*-int8-{calibration.digest}-*")
    made_at = kept.stat().st_mtime_ns
    [unquantized] = set(tmp_path.iterdir()) - {kept}
    shutil.rmtree(unquantized)
    OpenVinoBackend(model, BackendOptions(max_batch_size=4, cache_folder=tmp_path))
    assert kept.stat().st_mtime_ns == made_at
    # And needs nothing else.
    assert not unquantized.exists()


def test_other_calibration_images_are_another_fingerprint(tiny: ModelSpec, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "clock.png").write_bytes(encode(draw("clock"), "PNG"))
    placement = place("cpu", "int8", "openvino")
    fingerprints = {load(tiny, placement, Calibration.of(images)).fingerprint for images in (folder, tmp_path)}
    fingerprints.add(load(tiny, place("cpu", "fp32", "openvino")).fingerprint)
    assert len(fingerprints) == 3


def test_a_model_served_in_int8_reports_its_precision(tiny: ModelSpec, folder: Path, tmp_path: Path) -> None:
    options = ServingOptions(models=[tiny], precision="int8", calibration_folder=folder, cache_folder=tmp_path)
    serving = LocalRuntime(options, Telemetry())
    try:
        assert serving.cards["tiny"].dtype == "int8"
    finally:
        serving.close(timeout_s=10)


def test_a_folder_that_cannot_calibrate_ends_the_start_with_its_name(tiny: ModelSpec, tmp_path: Path) -> None:
    def start(**options: Path) -> None:
        LocalRuntime(
            ServingOptions(models=[tiny], precision="int8", cache_folder=tmp_path / "cache", **options), Telemetry()
        )

    with pytest.raises(StartError, match="needs a calibration folder"):
        start()
    with pytest.raises(StartError, match="nowhere is not there"):
        start(calibration_folder=tmp_path / "nowhere")
    images = tmp_path / "images"
    images.mkdir()
    with pytest.raises(StartError, match="images has no files"):
        start(calibration_folder=images)
    (images / "notes.txt").write_text("taken in May")
    with pytest.raises(StartError, match=r"none of the 1 files in .*images is an image"):
        start(calibration_folder=images)

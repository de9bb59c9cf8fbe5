"""Settings that travel to other machines of a cluster."""

from __future__ import annotations

from pathlib import Path

from app.ray_serve.serve import with_absolute_paths
from app.settings import Settings


def test_relative_paths_become_absolute_and_stay_so(tmp_path: Path) -> None:
    for folder in ("mine", "resnet18"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.toml").touch()
    settings = Settings(
        models=("./mine", "../other", "mine", "resnet18", "null", "~/mine", "/mine", "other=./mine"),
        cache_folder=Path("~/.cache/gradless"),
        calibration_folder=Path("photos"),
        models_folder=Path("/models"),
        search_index=Path("index"),
    )
    absolute = with_absolute_paths(settings, tmp_path)

    mine = str(tmp_path / "mine")
    assert absolute.models == (
        mine,
        str(tmp_path / "../other"),
        mine,
        "resnet18",
        "null",
        "~/mine",
        "/mine",
        f"other={mine}",
    )
    assert (absolute.calibration_folder, absolute.search_index) == (tmp_path / "photos", tmp_path / "index")
    assert (absolute.models_folder, absolute.cache_folder) == (Path("/models"), Path("~/.cache/gradless"))
    assert with_absolute_paths(absolute, Path("/elsewhere")) == absolute

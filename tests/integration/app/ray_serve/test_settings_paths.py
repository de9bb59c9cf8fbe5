"""Settings on their way to machines of a cluster."""

from __future__ import annotations

from pathlib import Path

from app.ray_serve.settings_paths import with_absolute_paths
from app.settings import Settings


def test_paths_are_whole_before_they_go_where_another_folder_is_worked_in(tmp_path: Path) -> None:
    for folder in ("mine", "resnet18"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.toml").touch()
    settings = Settings(
        models=("./mine", "../other", "mine", "resnet18", "null", "~/mine", "/mine"),
        cache_folder=Path("~/.cache/gradless"),
        calibration_folder=Path("photos"),
        models_folder=Path("/models"),
        search_index=Path("index"),
    )
    told = with_absolute_paths(settings, tmp_path)

    mine = str(tmp_path / "mine")
    assert told.models == (mine, str(tmp_path / "../other"), mine, "resnet18", "null", "~/mine", "/mine")
    assert (told.calibration_folder, told.search_index) == (tmp_path / "photos", tmp_path / "index")
    assert (told.models_folder, told.cache_folder) == (Path("/models"), Path("~/.cache/gradless"))
    assert with_absolute_paths(told, Path("/elsewhere")) == told

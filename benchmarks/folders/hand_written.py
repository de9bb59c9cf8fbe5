"""A typical hand-written loop: a DataLoader over Pillow and torchvision's transforms, the network as built, batches of
32 under no_grad, vectors into one file. A script.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from models.hardware.cores import available_cores
from models.images.preprocessing import Transform
from models.loading import catalog
from models.networks.cutting import cut_at_head


class Pictures(Dataset[torch.Tensor]):
    """The files of a folder as (3, crop, crop) float32, normalised."""

    def __init__(self, folder: Path, preset: Transform) -> None:
        self._files = sorted(folder.iterdir())
        self._transform = transforms.Compose(
            [
                transforms.Resize(preset.resize, interpolation=transforms.InterpolationMode(preset.interpolation)),
                transforms.CenterCrop(preset.crop),
                transforms.ToTensor(),
                transforms.Normalize(preset.mean, preset.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels: torch.Tensor = self._transform(Image.open(self._files[index]).convert("RGB"))
        return pixels


def main(folder: Path, output: Path) -> None:
    """Write the vectors of `folder` to `output`."""
    classifier = catalog.find(catalog.DEFAULT_MODEL).build()
    network = cut_at_head(catalog.DEFAULT_MODEL, classifier.module, classifier.transform.crop)
    loader = DataLoader(Pictures(folder, classifier.transform), batch_size=32, num_workers=available_cores())
    with torch.no_grad():
        np.save(output, np.concatenate([network(batch).features.numpy() for batch in loader]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

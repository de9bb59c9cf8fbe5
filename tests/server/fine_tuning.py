"""A typical training script, independent of gradless: python fine_tuning.py FOLDER

It writes FOLDER/my-model with model.pt (the state dict) and labels.txt, FOLDER/held-out with pictures for validation,
and FOLDER/answers.json with the model's answers to these. It prints its accuracy on them.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
import torchvision
from drawn_shapes import SHAPES, draw
from PIL import Image
from torch import nn
from torchvision.transforms import v2

STEPS, BATCH = 40, 30
HELD_OUT = 6  # pictures of each shape

VALIDATION = v2.Compose(
    [
        v2.Resize(32),
        v2.CenterCrop(32),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def trained() -> nn.Module:
    """A ResNet-18 after some batches, each of new pictures."""
    torch.manual_seed(0)
    chance = random.Random(0)  # noqa: S311 - not for secrets
    model: nn.Module = torchvision.models.resnet18(num_classes=len(SHAPES))
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        classes = [number % len(SHAPES) for number in range(BATCH)]
        images = torch.stack([VALIDATION(draw(SHAPES[index], chance)) for index in classes])
        loss = nn.functional.cross_entropy(model(images), torch.tensor(classes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def held_out(folder: Path) -> list[Path]:
    """New pictures as files, in a folder per class."""
    chance = random.Random(1)  # noqa: S311 - as above
    files = []
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for number in range(HELD_OUT):
            files.append(folder / shape / f"{number:02}.png")
            draw(shape, chance).save(files[-1])
    return files


def main(folder: Path) -> None:
    model = trained()
    (folder / "my-model").mkdir()
    torch.save(model.state_dict(), folder / "my-model" / "model.pt")
    (folder / "my-model" / "labels.txt").write_text("\n".join(SHAPES) + "\n")

    model.eval()
    files = held_out(folder / "held-out")
    with torch.no_grad():
        logits = model(torch.stack([VALIDATION(Image.open(file).convert("RGB")) for file in files]))
    answers = {
        str(file.relative_to(folder)): SHAPES[index] for file, index in zip(files, logits.argmax(1), strict=True)
    }
    (folder / "answers.json").write_text(json.dumps(answers))
    right = sum(Path(file).parent.name == answer for file, answer in answers.items())
    print(f"accuracy {right / len(files):.3f}")  # noqa: T201 - it is a script


if __name__ == "__main__":
    main(Path(sys.argv[1]))

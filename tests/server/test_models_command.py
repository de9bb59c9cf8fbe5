"""`gradless models init` and `check`: output and exit status."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

Run = Callable[..., subprocess.CompletedProcess[bytes]]

EAGER = {"GRADLESS_BACKEND": "eager"}


@pytest.fixture
def folder(tmp_path: Path, clock_png: bytes) -> Path:
    """A checkpoint of a small network of three classes, which has learned nothing, and a picture."""
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    with torch.no_grad():
        # It answers any image with mostly dog: 0.042, 0.844, 0.114.
        network.fc.weight.zero_()
        network.fc.bias.copy_(torch.tensor([-1.0, 2.0, 0.0]))
    made = tmp_path / "pets"
    made.mkdir()
    torch.save(network.state_dict(), made / "model.pt")
    (made / "labels.txt").write_text("cat\ndog\nfox\n")
    (made / "clock.png").write_bytes(clock_png)
    return made


def one_line(done: subprocess.CompletedProcess[bytes], status: int) -> str:
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == status
    assert line.startswith("gradless: ")
    return line


def add_reference(folder: Path, label: str, probability: float) -> None:
    with (folder / "model.toml").open("a") as file:
        file.write(f'\n[reference]\nimage = "clock.png"\nlabel = "{label}"\nprobability = {probability}\n')


def test_init_writes_a_folder_that_check_accepts(folder: Path, gradless: Run) -> None:
    begun = gradless("models", "init", str(folder), "--resize", "72", "--crop", "64")
    assert (begun.returncode, begun.stderr) == (0, b"")
    assert b"shufflenet_v2_x0_5, 3 classes, weights in model.pt, labels in labels.txt" in begun.stdout
    assert b"It assumes interpolation bilinear, resize 72, crop 64." in begun.stdout
    assert b"may be added later" not in begun.stdout
    add_reference(folder, "dog", 0.84)
    tried = gradless("models", "check", str(folder), "--image", str(folder / "clock.png"), **EAGER)
    assert (tried.returncode, tried.stderr) == (0, b"")
    message = {
        line.split()[0]: " ".join(line.split()[1:]) for line in tried.stdout.decode().splitlines() if line.strip()
    }
    assert message["model"] == "pets, shufflenet_v2_x0_5"
    assert message["classes"] == "3: cat, dog, fox"
    assert message["transform"] == "resize 72, crop 64, bilinear, crop"
    assert message["reference"] == "dog, 0.844"
    assert len(message["fingerprint"]) == 16
    assert message["forward"].endswith("ms for one image")
    # The classes of --image, most probable first.
    assert list(message)[-3:] == ["dog", "fox", "cat"]
    assert (message["dog"], message["fox"], message["cat"]) == ("0.844", "0.114", "0.042")


def test_init_without_a_file_of_labels_says_how_to_add_one(folder: Path, gradless: Run) -> None:
    (folder / "labels.txt").unlink()
    begun = gradless("models", "init", str(folder), "--architecture", "shufflenet_v2_x0_5")
    assert b"A labels.txt, one class a line with class 0 first, may be added later" in begun.stdout
    assert '# labels = "labels.txt"' in (folder / "model.toml").read_text().splitlines()


def test_a_misclassified_reference_image_exits_with_1(folder: Path, gradless: Run) -> None:
    gradless("models", "init", str(folder), "--architecture", "shufflenet_v2_x0_5")
    written = (folder / "model.toml").read_text()
    add_reference(folder, "cat", 0.9)
    line = one_line(gradless("models", "check", str(folder), **EAGER), 1)
    assert "clock.png is classified as 'dog' (0.844), not as 'cat' (0.042)" in line
    (folder / "model.toml").write_text(written)
    add_reference(folder, "dog", 0.5)
    line = one_line(gradless("models", "check", str(folder), **EAGER), 1)
    assert "clock.png is 'dog' with probability 0.844, more than 0.05 from 0.5" in line


def test_a_folder_that_cannot_be_served_exits_with_2_and_one_line(folder: Path, gradless: Run) -> None:
    line = one_line(gradless("models", "check", str(folder), **EAGER), 2)
    assert f"`gradless models init {folder}` writes one" in line
    (folder / "model.toml").write_text('architecture = "resnet18"\nweights = "model.pt"\n')
    for command in (("models", "check"), ("compare",)):
        line = one_line(gradless(*command, str(folder), **EAGER), 2)
        assert "model.pt: does not fit resnet18" in line
    line = one_line(gradless("models", "init", str(folder)), 2)
    assert line.endswith("model.toml: is there already, and is not overwritten")


def test_serving_a_file_of_weights_ends_with_3_and_the_commands_that_make_a_model_folder_of_it(
    folder: Path, gradless: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "model.pt").rename("best.pt")
    for command in ("init", "check"):
        assert "Make one of it" in one_line(gradless("models", command, "best.pt"), 2)
    done = gradless("serve", "best.pt")
    assert done.returncode == 3
    [said] = [json.loads(line)["event"] for line in done.stderr.splitlines() if b"Make one of it" in line]
    for command in said.split("Make one of it: ")[1].split(" && "):
        program, *arguments = shlex.split(command)
        if program == "gradless":
            assert gradless(*arguments).returncode == 0
        else:
            subprocess.run([program, *arguments], check=True)
    assert 'weights = "best.pt"' in (tmp_path / "best/model.toml").read_text()


def test_an_image_that_cannot_be_classified_exits_with_2_and_one_line(folder: Path, gradless: Run) -> None:
    gradless("models", "init", str(folder), "--architecture", "shufflenet_v2_x0_5")
    line = one_line(gradless("models", "check", str(folder), "--image", "no/such.jpg", **EAGER), 2)
    assert line.endswith("no/such.jpg cannot be read: No such file or directory")


def test_serve_reports_an_invalid_folder_in_one_line(folder: Path, gradless: Run) -> None:
    (folder / "model.toml").write_text('architecture = "resnet18"\nweights = "modl.pt"\n')
    done = gradless("serve", GRADLESS_MODELS=str(folder), GRADLESS_LOG_FORMAT="console", **EAGER)
    assert done.returncode != 0
    assert b"weights: there is no file 'modl.pt'" in done.stdout + done.stderr
    assert b"Traceback" not in done.stdout + done.stderr


def test_an_inner_layer_is_checked_without_classes(folder: Path, gradless: Run) -> None:
    (folder / "model.toml").write_text(
        'architecture = "shufflenet_v2_x0_5"\nweights = "model.pt"\nfeatures = "stage3"\n'
    )
    done = gradless("models", "check", str(folder), **EAGER)
    assert done.returncode == 0, done.stderr
    assert "of stage3" in done.stdout.decode()

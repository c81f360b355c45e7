"""Bad inputs of `detection export`: one line, exit status 1 or 2 (128 + n for a signal), and no file is left.

`pytest -s tests/export/test_bad_inputs.py` prints the table.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detection.cli import main
from detection.data.loading.index import pack
from detection.export import agreement, checked, onnx_file, torch_program
from detection.files import PREPARED, write_json
from detection.models.build import LoadedDetector
from tests.export.conftest import SMALL


@dataclass
class Place:
    """The current folder of a case: `detector.pt`, `images`, and what the case adds."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    detectors: dict[int, LoadedDetector]
    """By the seed of the weights; 0 is the file's."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(content)

    def traced(self, network: Callable[[Path], Any], seed: int = 0) -> None:
        """Replace tracing and ONNX Runtime, which take seconds: the file's detections are those of a seed."""
        other = self.detectors[seed].detector
        self.monkeypatch.setattr(torch_program, "trace", lambda *args, **options: None)
        self.monkeypatch.setattr(onnx_file, "write_network", lambda _, path: network(path))
        self.monkeypatch.setattr(agreement, "OnnxDetector", lambda path: other)

    def prepare(self, classes: tuple[str, ...]) -> None:
        """A prepared dataset without images."""
        folder = self.folder / PREPARED
        folder.mkdir(parents=True)
        listing = dict.fromkeys(("train", "val", "test"), "")
        meta = {"dataset": "mine", "classes": classes, "path": "mine", "listing": listing}
        write_json(folder / "meta.json", meta)
        write_json(folder / "test_listing.json", {})
        for split in listing:
            pack([]).save(folder / f"{split}.npz")


def _missing_package(place: Place) -> None:
    place.monkeypatch.setattr(checked, "find_spec", lambda name: None if name == "onnxruntime" else name)


def _repository(place: Place) -> None:
    (place.folder / ".dvc").mkdir()
    subprocess.run(["git", "init", "-q", place.folder], check=True)
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", "--allow-empty"], check=True
    )


def _other_class_count(place: Place) -> None:
    saved = torch.load(place.folder / "detector.pt", weights_only=True)
    torch.save(saved | {"classes": ["ring", "cross"]}, place.folder / "fewer.pt")


def _raise(error: BaseException) -> Callable[[Path], None]:
    def network(path: Path) -> None:
        path.write_bytes(b"part")
        raise error

    return network


def _full_in_c(place: Place) -> None:
    usage = shutil.disk_usage(place.folder)
    place.traced(_raise(RuntimeError("Protobuf serialization failed")))
    place.monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))


def _kill(number: int) -> Callable[[Place], None]:
    return lambda place: place.traced(lambda path: os.kill(os.getpid(), number))


@dataclass(frozen=True)
class Case:
    """A command and its answer."""

    name: str
    arguments: str
    answer: str
    """Part of the line."""
    status: int = 1
    setup: Callable[[Place], object] = field(default=lambda place: None)


FILE, IMAGES = "detector.pt", "detector.pt --images images"
CASES = [
    Case("experiment outside of a repository", "mine --images images", "is not a DVC repository"),
    Case(
        "unknown experiment",
        "no-such-experiment",
        "no experiment, MLflow run or git revision 'no-such-experiment'",
        setup=_repository,
    ),
    Case("missing file", "missing.pt", "missing.pt does not exist; train a detector first"),
    Case(
        "no file of weights", "text.pt", "text.pt is not a detector's file", setup=lambda p: p.write("text.pt", b"hi")
    ),
    Case(
        "truncated file",
        "half.pt",
        "half.pt is not a detector's file",
        setup=lambda p: p.write("half.pt", (p.folder / FILE).read_bytes()[:100_000]),
    ),
    Case(
        "weights alone",
        "weights.pt",
        "weights.pt",
        setup=lambda p: torch.save({"weight": torch.zeros(1)}, p.folder / "weights.pt"),
    ),
    Case("weights of another class count", "fewer.pt --images images", "fewer.pt", setup=_other_class_count),
    Case("unknown format", f"{IMAGES} --to onx", "invalid choice: 'onx'", 2),
    Case("unknown precision", f"{IMAGES} --precision fp15", "invalid choice: 'fp15'", 2),
    Case("unknown option", f"{IMAGES} --fp16", "unrecognized arguments: --fp16", 2),
    Case(".pt2 in int8", f"{IMAGES} --to pt2 --precision int8", "leave out --to pt2"),
    Case(".pt2 of the core", f"{IMAGES} --to pt2 --core", "leave out --to pt2"),
    Case("missing package", IMAGES, "pip install onnxruntime", setup=_missing_package),
    Case("nothing prepared", FILE, "--images FOLDER"),
    Case("no val images", FILE, "the prepared splits are empty", setup=lambda p: p.prepare(("ring", "cross", "leaf"))),
    Case(
        "data of other classes",
        f"{IMAGES} --evaluate",
        "has other classes than the data",
        setup=lambda p: p.prepare(("cat", "dog")),
    ),
    Case("AP without prepared data", f"{IMAGES} --evaluate", "dvc repro prepare"),
    Case("missing images", f"{FILE} --images none", "none does not exist"),
    Case("folder without images", f"{FILE} --images empty", "empty", setup=lambda p: (p.folder / "empty").mkdir()),
    Case("video alone", f"{FILE} --images video", "no image files", setup=lambda p: p.write("video/a.mp4", b"")),
    Case("broken image", f"{FILE} --images bad", "bad/a.png", setup=lambda p: p.write("bad/a.png", b"no image")),
    Case("--out is a file", f"{IMAGES} --out {FILE}", "detector.pt is a file"),
    Case("--out below a file", f"{IMAGES} --out {FILE}/export", "Not a directory"),
    Case("--out cannot be written", f"{IMAGES} --out /proc/export", "/proc/export"),
    Case(
        "a folder of the file's name",
        IMAGES,
        "export/detector.onnx is a folder",
        setup=lambda p: (p.folder / "export" / "detector.onnx").mkdir(parents=True),
    ),
    Case("somebody's infer.py", IMAGES, "would be lost", setup=lambda p: p.write("export/infer.py", b"print('mine')")),
    Case(
        "a file that disagrees",
        IMAGES,
        "the exported file disagrees with the detector in check 0",
        setup=lambda p: p.traced(lambda path: path.write_bytes(b""), seed=1),
    ),
    Case(
        "disk full",
        IMAGES,
        "No space left on device (export/x); free disk space",
        setup=lambda p: p.traced(_raise(OSError(errno.ENOSPC, "No space left on device", "export/x"))),
    ),
    Case("disk full in ONNX Runtime", IMAGES, "No space left on device (export); free disk space", setup=_full_in_c),
    Case("Ctrl-C", IMAGES, "stopped by SIGINT; nothing was written", 130, _kill(signal.SIGINT)),
    Case("SIGTERM", IMAGES, "stopped by SIGTERM; nothing was written", 143, _kill(signal.SIGTERM)),
]


@pytest.fixture(scope="module")
def detectors(random_detector: Callable[..., LoadedDetector]) -> dict[int, LoadedDetector]:
    """The file's detector, and another one."""
    return {seed: random_detector(**SMALL, seed=seed) for seed in (0, 1)}


@pytest.fixture
def place(
    detectors: dict[int, LoadedDetector],
    detector_file: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    """A folder outside of every repository, the current one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(detector_file, tmp_path / FILE)
    (tmp_path / "images").symlink_to(image_folder)
    return Place(tmp_path, monkeypatch, detectors)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_line_and_no_file(case: Case, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    case.setup(place)
    before = sorted(place.folder.glob("export/**/*"))
    with pytest.raises(SystemExit) as stop:
        main(["export", *case.arguments.split()])
    code = stop.value.code
    out, err = capfd.readouterr()
    printed = [line for line in (out + err + (code if isinstance(code, str) else "")).splitlines() if line]
    status = 1 if isinstance(code, str) else code
    with capfd.disabled():
        sys.stdout.write(f"| {case.name} | `{case.arguments}` | {status} | {printed[-1]} |\n")
    assert status == case.status
    assert case.answer in printed[-1]
    assert len(printed) == 1 or printed[0].startswith("usage:")
    assert sorted(place.folder.glob("export/**/*")) == before


def test_folders_of_killed_exports_are_deleted(place: Place) -> None:
    out = place.folder / "export"
    with checked._folder(out, "detector.onnx") as running:
        place.write(f"export/{running.name}/network.onnx", b"part")
        place.write("export/.export-killed/network.onnx", b"part")
        with checked._folder(out, "detector.onnx"):
            assert [path.name for path in out.glob("*/network.onnx")] == ["network.onnx"]
            assert running.is_dir()
    assert not out.exists()


def test_other_files_of_the_folder_stay(place: Place, images: list[Tensor]) -> None:
    place.write("export/notes.txt", b"mine")
    place.write("export/infer.py", checked.SCRIPT.read_bytes())
    with checked._folder(place.folder / "export", "detector.onnx") as folder:
        np.save(folder / "part.npy", images[0])
    assert sorted(path.name for path in (place.folder / "export").iterdir()) == ["infer.py", "notes.txt"]

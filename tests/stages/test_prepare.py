"""The `prepare` stage, in a process and a folder of its own as under DVC."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detection.data.loading.prepared import Prepared

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    *(f"data/prepared/{name}.npz" for name in ("train", "val", "test")),
    *(f"data/prepared/{name}.json" for name in ("meta", "test_coco", "test_listing")),
    *(f"reports/dataset/{name}.png" for name in ("class_counts", "box_sizes", "samples")),
    *("reports/dataset/card.json", "reports/dataset/classes.csv"),
}


def prepare(folder: Path, data: Path, code: str = "", **values: str) -> subprocess.CompletedProcess[str]:
    """Run the stage in `folder` with the repository's params.yaml and some top-level values replaced."""
    folder.mkdir(exist_ok=True)
    text = (ROOT / "params.yaml").read_text()
    for key, value in values.items():
        line = next(line for line in text.splitlines() if line.startswith(key))
        text = text.replace(line, f"{key}: {value}", 1)
    (folder / "params.yaml").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DATA_ROOT": str(data), "DVC_ROOT": str(folder)}
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "stages.prepare"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def shapes_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    code = (
        "import sys; from stages.prepare import main; from stages.entry import run; run(main); "
        "print('heavy:', sorted({'torch', 'torchvision', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    result = prepare(folder, folder / "raw", code, dataset="shapes")
    assert result.returncode == 0, result.stderr
    assert "heavy: []" in result.stdout
    return folder


def test_the_stage_writes_all_outputs(shapes_run: Path) -> None:
    written = {
        path.relative_to(shapes_run).as_posix()
        for folder in ("data", "reports")
        for path in (shapes_run / folder).rglob("*")
        if path.is_file()
    }
    assert written == FILES
    prepared = Prepared.load(shapes_run / "data/prepared")
    coco = json.loads((shapes_run / "data/prepared/test_coco.json").read_text())
    assert len(coco["images"]) == len(prepared.index("test"))
    card = json.loads((shapes_run / "reports/dataset/card.json").read_text())
    assert len(card["digest"]) == 32


def test_another_workspace_writes_equal_files(shapes_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    result = prepare(other, shapes_run / "raw", dataset="shapes")
    assert result.returncode == 0, result.stderr
    assert "generating" not in result.stdout
    for file in FILES:
        assert (other / file).read_bytes() == (shapes_run / file).read_bytes(), file


def test_a_missing_dataset_is_one_line(tmp_path: Path) -> None:
    result = prepare(tmp_path / "work", tmp_path / "raw", dataset="voc0712")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: dataset voc0712 is not at {tmp_path}/raw/VOCdevkit")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "work/data").exists()


@pytest.mark.parametrize("name", ["bccd", "tiny_coco", "voc2007_320"])
def test_real_datasets_are_prepared(shared_data: Path, tmp_path: Path, name: str) -> None:
    result = prepare(tmp_path, shared_data, dataset=name)
    assert result.returncode == 0, result.stderr
    prepared = Prepared.load(tmp_path / "data/prepared")
    card = json.loads((tmp_path / "reports/dataset/card.json").read_text())
    assert f"digest: {card['digest']}" in result.stdout
    assert len(prepared.index("val")) > 0
    warning = "val (3 images, 45 objects) is too small: AP50 ± 0.23"
    assert (warning in result.stdout) == ("too small" in result.stdout) == (name == "tiny_coco")

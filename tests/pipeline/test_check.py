"""The check stage: a typo in params.yaml is one line on stderr, early, and changes no file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VOC = "\n  mine: {format: voc, path: mine, train: [2007/trainval], test: [2007/test], license: x}"
COCO = (
    "\n  mine: {format: coco, path: mine, license: x, train: [{images: a, annotations: a.json}],"
    " test: [{images: b, annotations: b.json}]}"
)


def run_check(folder: Path, *code: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "DATA_ROOT")}
    command = [sys.executable, *(code or ("-m", "stages.check"))]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**environment, "PYTHONPATH": str(ROOT)}
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def change(project: Path, old: str, new: str) -> None:
    file = project / "params.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def with_dataset(project: Path, entry: str) -> None:
    change(project, "\ndatasets:", "\ndatasets:" + entry)
    change(project, "\nbudgets:", "\nbudgets:\n  mine: {}")
    change(project, "\ndataset: shapes", "\ndataset: mine")


def test_its_output_is_independent_of_params(project: Path) -> None:
    assert run_check(project).returncode == 0
    first = (project / "data" / "raw_data.json").read_bytes()
    change(project, "\nseed: 0", "\nseed: 1")
    assert run_check(project).returncode == 0
    assert (project / "data" / "raw_data.json").read_bytes() == first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\nmodel: ", "\nmodel: retinanett  # ", "did you mean 'retinanet'?"),
        ("\ndataset: shapes", "\ndataset: shape", "did you mean 'shapes'?"),
        ("\nseed: 0", "\nsede: 0", "did you mean 'seed'?"),
        ("\n  device: auto", "\n  devise: auto", "train.devise: unknown key; did you mean 'device'?"),
        ("\n  device: auto", "\n  device: gpu", "train.device: 'gpu'"),
        ("\nseed: 0", "\nseed: 0\n  bad: [", "is not valid YAML"),
    ],
)
def test_a_typo_is_one_line_and_nothing_is_written(project: Path, old: str, new: str, message: str) -> None:
    change(project, old, new)
    done = run_check(project)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert os.listdir(project) == ["params.yaml"]


def commit(project: Path) -> None:
    identity = ("-c", "user.name=T", "-c", "user.email=t@localhost")
    for words in (["init", "-q"], ["add", "params.yaml"], [*identity, "commit", "-qm", "valid"]):
        subprocess.run(["git", *words], cwd=project, check=True)


def test_an_edit_by_hand_is_never_undone_by_an_advice(project: Path) -> None:
    commit(project)
    change(project, "\nmodel: ", "\nmodel: retinanett  # ")
    assert run_check(project).stderr.endswith("did you mean 'retinanet'?\n")


def test_after_set_param_the_message_names_the_value_before(project: Path) -> None:
    commit(project)
    change(project, "\nmodel: ", "\nmodel: retinanett  # ")
    change(project, "\nseed: 0", "\nseed: 1")
    dvc = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-m', 'stages.check']).returncode)"
    message = run_check(project, "-c", dvc, "exp", "run", "-S", "model=retinanett").stderr
    assert message.endswith(
        "did you mean 'retinanet'?; -S has written this into params.yaml: set it back there to "
        'model: "fasterrcnn_resnet18"\n'
    )


def test_a_missing_dataset_is_named_with_its_folder(project: Path) -> None:
    with_dataset(project, VOC)
    done = run_check(project)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert str(project / "data/raw/mine") in done.stderr
    assert "DATA_ROOT" in done.stderr


def test_a_missing_split_list_or_annotation_file_is_named(project: Path) -> None:
    with_dataset(project, VOC)
    voc = project / "data" / "raw" / "mine" / "2007"
    (voc / "JPEGImages").mkdir(parents=True)
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    (voc / "ImageSets" / "Main" / "trainval.txt").write_text("a\n")
    message = run_check(project).stderr
    assert "2007/ImageSets/Main/test.txt is not in" in message
    (voc / "ImageSets" / "Main" / "test.txt").write_text("b\n")
    assert run_check(project).returncode == 0


def test_a_missing_coco_file_is_named(project: Path) -> None:
    with_dataset(project, COCO)
    folder = project / "data" / "raw" / "mine"
    (folder / "a").mkdir(parents=True)
    (folder / "aa.json").write_text("{}")
    assert "a.json is not in" in run_check(project).stderr


def test_the_hash_of_a_weights_file_decides_if_pretrain_runs(project: Path) -> None:
    change(project, "\n  method: auto\n  file:", "\n  method: file\n  file: vgg16.pth")
    result = project / "data" / "weights.json"
    message = run_check(project).stderr
    assert f"pretrain.file: {project / 'vgg16.pth'} does not exist" in message
    assert message.count("\n") == 1
    assert not result.exists()
    (project / "vgg16.pth").write_bytes(b"one")
    assert run_check(project).returncode == 0
    first = result.read_bytes()
    (project / "vgg16.pth").write_bytes(b"two")
    assert run_check(project).returncode == 0
    assert result.read_bytes() != first
    (project / "vgg16.pth").rename(project / "moved.pth")
    (project / "moved.pth").write_bytes(b"one")
    change(project, "vgg16.pth", str(project / "moved.pth"))
    assert run_check(project).returncode == 0
    assert result.read_bytes() == first, "an absolute path is valid and does not enter the file"


def test_a_method_without_file_and_a_folder_are_refused(project: Path) -> None:
    change(project, "\n  method: auto", "\n  method: file")
    assert "pretrain.file: method: file needs the path" in run_check(project).stderr
    change(project, "\n  file:", "\n  file: data")
    (project / "data").mkdir()
    assert "is a folder" in run_check(project).stderr


def test_it_imports_nothing_heavy(project: Path) -> None:
    change(project, "\nmodel: ", "\nmodel: retinanett  # ")
    code = (
        "import runpy, sys; sys.argv[0] = 'check'\n"
        "try: runpy.run_module('stages.check', run_name='__main__')\n"
        "except SystemExit: print(*{'torch', 'mlflow', 'numpy', 'pandas', 'matplotlib'} & sys.modules.keys())"
    )
    assert run_check(project, "-c", code).stdout == "\n"


def sources(project: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads((project / "data" / "weights.json").read_text())["start"]
    return values


def start_from(project: Path, source: str) -> None:
    change(project, "start:\n  from:\n", f"start:\n  from: {source}\n")


def test_without_a_start_the_sources_say_so(project: Path) -> None:
    assert run_check(project).returncode == 0
    assert sources(project) == {"from": None}


def test_published_weights_are_the_recipes(project: Path) -> None:
    change(project, "\nmodel: ", "\nmodel: retinanet  # ")
    start_from(project, "published")
    assert run_check(project).returncode == 0
    assert sources(project)["weights"] == "RetinaNet_ResNet50_FPN_Weights.COCO_V1"


def test_a_changed_weights_file_changes_the_sources(project: Path) -> None:
    (project / ".dvc").mkdir()
    start_from(project, "first.pth")
    (project / "first.pth").write_bytes(b"one")
    assert run_check(project).returncode == 0
    first = sources(project)
    (project / "first.pth").write_bytes(b"two")
    assert run_check(project).returncode == 0
    assert sources(project)["sha256"] != first["sha256"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.pth", "missing.pth does not exist"),
        ("published", "no detector weights are published for fasterrcnn_resnet18"),
        ("folder", "folder is a folder; name the weights file in it"),
        ("publishd", "did you mean 'published'?"),
        ("workspace", "name an experiment or a file"),
        ("models/detector.pt", "cp models/detector.pt first.pt"),
        ("models:/name", "is not models:/<name>@<alias>"),
        ("models:/name@best", "`detection promote` registers one"),
        ("3", "Expected str"),
    ],
)
def test_a_source_that_cannot_be_resolved_is_one_line(project: Path, source: str, message: str) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    (project / ".dvc").mkdir()
    (project / "folder").mkdir()
    (project / "models").mkdir()
    (project / "models" / "detector.pt").touch()
    start_from(project, source)
    done = run_check(project)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (project / "data").exists()


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("lr: 1.2e-3, weight_decay", "lr: 1.3e-3, weight_decay", True),
        ("  shapes: {preset: small, ", "  shapes: {preset: finetune, ", True),
        ("image_size: 128, batch_size: 8, epochs: 5", "image_size: 128, batch_size: 8, epochs: 6", True),
        ("  finetune:\n    antialias: true", "  finetune:\n    antialias: false", False),
        ("  retinanet:\n", "  retinanet:\n    nms_threshold: 0.4\n", False),
    ],
)
def test_the_merged_recipe_changes_with_what_the_experiment_uses(
    project: Path, old: str, new: str, changes: bool
) -> None:
    recipe = project / "data" / "recipe.json"
    assert run_check(project).returncode == 0
    first = recipe.read_bytes()
    change(project, old, new)
    assert run_check(project).returncode == 0
    assert (recipe.read_bytes() != first) == changes

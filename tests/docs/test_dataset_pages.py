"""The pages on datasets and on fine-tuning, from top to bottom in a small clone, with images of one's own."""

import re
import shutil
import zipfile

import pytest

from tests.docs.pages import ROOT, Outputs, Reader, small_clone
from tests.doctor import tool_exports


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Somebody with images of their own."""
    return Reader(small_clone(tmp_path_factory.mktemp("newcomer") / "clone", joined=True))


@pytest.fixture(scope="module")
def datasets(newcomer: Reader) -> Outputs:
    folder = newcomer.clone.folder

    def export(_: Outputs) -> None:
        with zipfile.ZipFile(folder / "export.zip", "w") as archive:
            for number in range(40):
                path = folder / "exported" / tool_exports.name(number)
                tool_exports.save_image(path, number)
                archive.write(path, path.name)
                archive.writestr(f"{path.stem}.xml", tool_exports.voc_xml(number, path.name))
        tool_exports.save_image(folder / "photos/one.jpg", 100)

    def edit_params(outputs: Outputs) -> None:
        """Insert the two lines that the doctor prints; with a smaller budget."""
        lines = re.findall(
            r"^ +(mine: \{.*\})", outputs["mkdir -p data/raw/mine && unzip export.zip -d data/raw/mine"], re.M
        )
        page = re.findall(r"^  (mine: \{.*\})$", (ROOT / "docs/datasets.md").read_text(), re.M)
        assert [re.sub(r"holdout_fraction: 0\.[12]", "", line) for line in lines] == [
            re.sub(r"holdout_fraction: 0\.[12]", "", line) for line in page
        ]
        params = folder / "params.yaml"
        text = params.read_text().replace("\ndatasets:\n", f"\ndatasets:\n  {lines[0]}\n")
        budget = "mine: {image_size: 96, batch_size: 4, epochs: 1}"
        params.write_text(text.replace("\nbudgets:\n", f"\nbudgets:\n  {budget}\n"))

    before = {
        "mkdir -p data/raw/mine && unzip export.zip -d data/raw/mine": export,
        'git commit -am "Dataset mine"': edit_params,
    }
    own = {"detection serve": f"detection serve --port {newcomer.port}"}
    return newcomer.follow("docs/datasets.md", own, before)


def test_datasets(newcomer: Reader, datasets: Outputs) -> None:
    folder = newcomer.clone.folder
    assert "Ran experiment" in datasets['git commit -am "Dataset mine"']
    assert (folder / "browse.png").is_file()
    assert "digest: " in (folder / "params.yaml").read_text()
    assert list((folder / "out").rglob("*.json"))


def test_finetuning(newcomer: Reader, datasets: Outputs) -> None:
    folder = newcomer.clone.folder
    shutil.copy(folder / "models/detector.pt", folder / "first.pt")
    (output,) = newcomer.follow("docs/finetuning.md", {}).values()
    assert output.count("Ran experiment") == 2
    assert "more" in output.partition("differing params")[2]

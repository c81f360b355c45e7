"""Training and its benchmarks run where only torch, torchvision and numpy are installed; scoring imports little."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dvc", "mlflow", "msgspec", "pycocotools", "pydantic", "rich", "ruamel"):
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Absent())
from benchmarks.sides import CASES, build, make_batch, our_step
import torch

torch.set_num_threads(1)
ours, _ = build(CASES["ssdlite320"], 3)
our_step(ours, *make_batch(2, 320, 320, 3, "cpu"), torch.float32)()
print("stepped")
"""


def test_a_step_needs_nothing_else() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "stepped", ran.stderr


@pytest.mark.parametrize("command", ["predict", "export", "serve"])
def test_the_flags_of_a_command_need_no_torch(command: str) -> None:
    program = f"import sys; import detection.commands.{command}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "mlflow", "fastapi"} & set(ran.stdout.split())


def test_scoring_imports_neither_recipes_nor_pillow() -> None:
    program = "import sys; from detection.evaluation import external; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"detection.params.recipe", "PIL", "torch", "pandas"} & set(ran.stdout.split())

"""Where things live that outlast one workspace: the raw data, the checkpoints, the tracking store.

`dvc exp run --temp` and the queue run a stage in a temporary copy of the repository that is deleted
afterwards; DVC sets `DVC_ROOT` to the main repository there. What must survive hangs on that root.
"""

import os
from pathlib import Path


def dvc_root() -> Path:
    """The main repository: `$DVC_ROOT`, else the nearest folder upward that holds `.dvc`, else here."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def data_root() -> Path:
    """Raw datasets: `$DATA_ROOT` (relative to the main repository), else `<DVC_ROOT>/data/raw`.

    A dataset's `path` is relative to it.
    """
    return dvc_root() / (os.environ.get("DATA_ROOT") or "data/raw")


def checkpoint_root() -> Path:
    """Checkpoints by stage and content key; never a DVC out, so that DVC does not delete them."""
    return dvc_root() / ".checkpoints"

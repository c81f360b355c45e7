"""Shell and Python blocks of the documentation, and a small clone in which a page is followed from top to bottom."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.soak.clones import Clone, wait
from tests.soak.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
Outputs = dict[str, str]
"""Output of each block of a page by its first line."""
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]*) -->\n)?^```(?P<language>sh|python)\n(?P<script>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
JOINED = ("pretrain", "train", "evaluate")
JOINED_STAGES = f"""from stages import {", ".join(JOINED)}
from stages.entry import run


def main():
    for stage in ({", ".join(JOINED)}):
        stage.main()


run(main)
"""
SECONDS_PER_BLOCK = 1200
SERVER = re.compile(r"^(make ui|detection serve|mlflow models serve)(?=\s)", re.MULTILINE)
INTERRUPTED = re.compile(r"^(.*?) *# Ctrl-C after `(step \d+)`$", re.MULTILINE)
FUNCTIONS = """
# Start a server that lives until the page's end, and wait until it answers.
background() {
    "$@" > server.log 2>&1 &
    until curl --silent --output /dev/null --max-time 5 "http://127.0.0.1:$SERVER_PORT"; do
        kill -0 $! || { cat server.log; return 1; }
        sleep 0.5
    done
    cat server.log
}
wait_for_queue() {
    while dvc queue status | grep -E "Queued|Running"; do sleep 3; done
    ! dvc queue status | grep Failed
}
# Press Ctrl-C once a line begins with the first argument.
interrupt() {
    line=$1; shift; set -m; "$@" > interrupted.log 2>&1 & set +m
    until grep -q "^$line/" interrupted.log; do
        kill -0 $! || { cat interrupted.log; return 1; }
        sleep 0.05
    done
    kill -INT -- -$!; wait $! && return 1; cat interrupted.log
}
"""


@dataclass(frozen=True)
class Block:
    """A block of a page."""

    page: str
    language: str
    script: str
    reason: str | None
    """Why it is not run."""

    @property
    def first(self) -> str:
        """First command, without its comment."""
        return self.script.split("\n")[0].split(" #")[0].strip()


def blocks(page: str) -> list[Block]:
    """Blocks of a page, in its order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(page, one["language"], one["script"], one["reason"]) for one in BLOCK.finditer(text)]


class Reader:
    """Somebody who follows pages in a clone, and types what the blocks say.

    Args:
        clone: Repository that the blocks are run in.
    """

    def __init__(self, clone: Clone) -> None:
        self.clone = clone
        self.port = free_port()
        """Port of the servers that the pages start."""
        link_environment(clone.folder / ".venv")

    def follow(
        self, page: str, own: Mapping[str, str], before: Mapping[str, Callable[[Outputs], None]] = {}
    ) -> Outputs:
        """Run the blocks of a page, in a shell each.

        Args:
            page: File of the page.
            own: What the reader types instead of names and sizes on the page; each of them must be there.
            before: What the reader does before a block, by its first command, with the output of those above.

        Returns:
            Output (stdout and stderr) by the block's first command.
        """
        run = [block for block in blocks(page) if not block.reason]
        text = "".join(block.script for block in run)
        unused = [name for name in own if name not in text]
        assert not unused, f"{page} does not have {unused}"
        assert before.keys() <= {block.first for block in run}
        outputs: Outputs = {}
        try:
            for block in run:
                assert block.first not in outputs, f"two blocks of {page} begin with {block.first}"
                if step := before.get(block.first):
                    step(outputs)
                outputs[block.first] = self._run(block, own)
            return outputs
        finally:
            self._stop_servers()

    def _run(self, block: Block, own: Mapping[str, str]) -> str:
        script = block.script
        names = "|".join(re.escape(name) for name in sorted(own, key=len, reverse=True))
        script = re.sub(rf"(?<![\w/.])({names})(?!\w)", lambda match: own[match[1]], script) if own else script
        if block.language == "sh":
            if SERVER.search(script):
                self._stop_servers()  # the port is free again
            script = SERVER.sub(r"background \1", INTERRUPTED.sub(r"interrupt '\2' \1", script))
            words = ["bash", "-e", "-o", "pipefail", "-c", FUNCTIONS + script]
        else:
            words = [sys.executable, "-c", script]
        done = subprocess.run(
            ["timeout", "--kill-after=60", str(SECONDS_PER_BLOCK), *words],
            cwd=self.clone.folder,
            env=self.clone.environment(PORT=str(self.port), SERVER_PORT=str(self.port), DVC_NO_ANALYTICS="true"),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{block.page}: exit code {done.returncode} of\n{script}\n{done.stdout[-5000:]}"
        return done.stdout

    def _stop_servers(self) -> None:
        for process in self.clone.processes() + self.clone.workers():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                process.send_signal(signal.SIGTERM)
        assert wait(lambda: not self.clone.processes(), 60), "a server does not end"


def small_clone(folder: Path, joined: bool = False) -> Clone:
    """Clone of this checkout in which a training takes seconds: 32 images, one epoch, no pretraining.

    With `joined`, the stages from `pretrain` to `evaluate` run in one process, and `plots` does not: most of the time
    of such small stages is that of imports.
    """
    clone = Clone.create(folder, epochs=1, num_images=16, model="fasterrcnn_resnet18", left_out=())
    params = clone.folder / "params.yaml"
    text, count = re.subn(r"^  method: crops$", "  method: none", params.read_text(), flags=re.MULTILINE)
    budget = "{image_size: 96, batch_size: 4, epochs: 1}"
    text, other = re.subn(r"^  bccd: \{preset: .*$", f"  bccd: {budget}", text, flags=re.MULTILINE)
    assert (count, other) == (1, 1)
    params.write_text(text)
    if joined:
        join_stages(clone)
    clone.commit("small settings")
    return clone


def join_stages(clone: Clone) -> None:
    """Replace the stages from `pretrain` to `evaluate` by one, and remove `plots`."""
    file = clone.folder / "dvc.yaml"
    stages = yaml.safe_load(file.read_text())["stages"]
    joined: dict[str, Any] = {"cmd": "exec python joined_stages.py stages.train"}
    parts = [stages[name] for name in JOINED]
    written = [out for part in parts for out in part.get("outs", [])]
    written += [next(iter(metric)) for part in parts for metric in part.get("metrics", [])]
    for key in ("deps", "params", "outs", "metrics"):
        found = [one for part in parts for one in part.get(key, [])]
        joined[key] = [
            one for n, one in enumerate(found) if one not in found[:n] and (key != "deps" or one not in written)
        ]
    kept = {name: stages[name] for name in ("check", "prepare")}
    file.write_text(yaml.safe_dump({"stages": {**kept, "evaluate": joined}}))
    (clone.folder / "joined_stages.py").write_text(JOINED_STAGES)


def link_environment(folder: Path) -> None:
    """Make the environment of this process a folder's, as if `make install` had just been called."""
    folder.mkdir()
    for path in Path(sys.prefix).iterdir():
        (folder / path.name).symlink_to(path)
    marker = folder / ".synced"
    marker.unlink(missing_ok=True)
    marker.touch()
    assert os.access(folder / "bin/python", os.X_OK)

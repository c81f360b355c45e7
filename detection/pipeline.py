"""The pipeline as DVC and git know it: dvc.yaml, dvc.lock, the running experiment, the commit.

The only reader of dvc.yaml and dvc.lock. All YAML is read by the rules of YAML 1.2, as DVC does.
"""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from detection.errors import DataError, ParamsError
from detection.files import DETECTOR, DVC_LOCK, DVC_YAML, PARAMS_YAML, dvc_root
from detection.params import Params, schema
from detection.text import flatten

PIPELINE, LOCK, PARAMS = str(DVC_YAML), str(DVC_LOCK), str(PARAMS_YAML)
CODE_FOLDERS = ("detection/", "stages/")
VARIABLE = re.compile(r"\$\{([^}]+)\}")
"""DVC's templating, such as `models.${model}.backbone`."""
NOT_CODE = (":!params.yaml", ":!dvc.lock", ":!reports")
"""Git pathspecs of the files that differ between experiments by nature."""


def stages(root: str | Path = ".") -> dict[str, dict[str, Any]]:
    """Stages of a repository's dvc.yaml by name; empty without the file.

    Raises:
        DataError: The file is not valid YAML.
    """
    path = Path(root, PIPELINE)
    return parse(PIPELINE, path.read_bytes()).get("stages", {}) if path.is_file() else {}


def paths(stage: Mapping[str, Any], *sections: str) -> list[str]:
    """Paths in sections of a stage (`deps`, `outs`, `metrics`), without the options that may follow them."""
    entries = (entry for section in sections for entry in stage.get(section, []))
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def dependencies(stage: str, root: str | Path = ".") -> list[str]:
    """Files and folders that a stage of dvc.yaml depends on, code and data, as listed."""
    return paths(stages(root).get(stage, {}), "deps")


def dependency_files(stage: str, root: str | Path = ".") -> Iterator[tuple[str, Path]]:
    """Name and path of every file among a stage's dependencies; of a code folder its modules."""
    for name in sorted(dependencies(stage, root)):
        path = Path(root, name)
        if not path.is_dir():
            yield name, path
            continue
        pattern = "*.py" if is_code(name) else "*"
        for file in sorted(one for one in path.rglob(pattern) if one.is_file()):
            yield file.relative_to(root).as_posix(), file


def is_code(path: str) -> bool:
    """Return True for a dependency that is code of this repository."""
    return path.startswith(CODE_FOLDERS)


def code_files(names: Iterable[str], root: str | Path = ".") -> list[Path]:
    """Modules that the named stages depend on, without duplicates."""
    files = {file for name in names for path, file in dependency_files(name, root) if is_code(path)}
    return sorted(files)


def update_hash(digest: Any, files: Iterable[tuple[str, Path]]) -> None:
    """Feed names and contents of files into a `hashlib` object."""
    for name, file in files:
        with file.open("rb") as content:
            digest.update(name.encode() + hashlib.file_digest(content, "sha256").digest())


class StageInputs:
    """Code and params of a stage as they were at its start.

    DVC hashes both when a stage has ended. An edit in between would record its outputs under code or params that did
    not make them, and the run-cache would hand them to later experiments.

    Args:
        stage: Name in dvc.yaml.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        values, keys = self._values(), paths(stages().get(stage, {}), "params")
        self._keys = [VARIABLE.sub(lambda match: str(values.get(match[1])), key) for key in keys]
        self._before = self._read()

    def check(self) -> None:
        """Compare with the files as they are now.

        Raises:
            ParamsError: They have changed; names the first change and the way back.
        """
        now = self._read()
        for name in sorted(self._before.keys() | now.keys()):
            before, after = self._before.get(name), now.get(name)
            if before == after:
                continue
            what = f"{name} changed" if is_code(name) else f"{PARAMS}: {name} changed from {before} to {after}"
            raise ParamsError(
                f"{what} while {self._stage} ran, and DVC would record the outputs under the change; "
                f"undo it and run the same command again, which continues where this stage ended"
            )

    def _read(self) -> dict[str, str]:
        """Hash by module, value by params key."""
        files = [(name, file) for name, file in dependency_files(self._stage) if is_code(name) and file.is_file()]
        hashes = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files}
        values = self._values().items()
        return hashes | {
            name: json.dumps(value, default=str)
            for name, value in values
            if any(f"{name}.".startswith(f"{key}.") for key in self._keys)
        }

    @staticmethod
    def _values() -> dict[str, Any]:
        """Values of params.yaml by dotted key."""
        return flatten(parse(PARAMS, Path(PARAMS).read_bytes()))


def locked_stages(lock: bytes | None) -> dict[str, dict[str, Any]]:
    """Stages of the content of a dvc.lock by name."""
    return dict((parse(LOCK, lock) if lock else {}).get("stages", {}))


def locked_outs(lock: bytes | None) -> dict[str, str]:
    """md5 of every output that the content of a dvc.lock records, by path."""
    outs = (out for stage in locked_stages(lock).values() for out in stage.get("outs", []))
    return {out["path"]: out["md5"] for out in outs if "md5" in out}


def locked_code(lock: bytes | None) -> dict[str, str]:
    """md5 of every code dependency that the content of a dvc.lock records, by path."""
    deps = (dep for stage in locked_stages(lock).values() for dep in stage.get("deps", []))
    return {dep["path"]: dep["md5"] for dep in deps if is_code(dep["path"])}


def locked_md5() -> dict[str, str]:
    """md5 of every output that this workspace's dvc.lock records, by path; empty without DVC."""
    path = Path(LOCK)
    return locked_outs(path.read_bytes() if path.is_file() else None)


def parse(name: str, content: bytes) -> dict[str, Any]:
    """A YAML mapping.

    Args:
        name: File name for the error message.
        content: UTF-8.

    Raises:
        DataError: The content is not valid YAML.
    """
    try:
        return schema.read(content.decode()) or {}
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{name} is not valid YAML ({reason}); resolve its merge conflicts") from None


def experiment_name() -> str:
    """DVC's name of the running experiment; empty under `dvc repro` and without DVC."""
    return os.environ.get("DVC_EXP_NAME", "")


def commit() -> str:
    """The experiment's baseline commit, else HEAD; empty outside git."""
    return os.environ.get("DVC_EXP_BASELINE_REV") or run_quiet("git", "rev-parse", "HEAD").strip()


def branch() -> str:
    """Branch that the experiment started from; DVC detaches HEAD while it runs one. Empty without a branch."""
    name = run_quiet("git", "-C", str(dvc_root()), "symbolic-ref", "--quiet", "--short", "HEAD").strip()
    if name or not (rev := commit()):
        return name
    form = "--format=%(refname:short)"
    names = run_quiet("git", "-C", str(dvc_root()), "for-each-ref", "--points-at", rev, form, "refs/heads")
    return names.partition("\n")[0].strip()


def remote() -> str:
    """URL of the remote `origin` of the main repository, without user and password; empty without one."""
    url = run_quiet("git", "-C", str(dvc_root()), "remote", "get-url", "origin").strip()
    return re.sub(r"^(https?://)[^/]*@", r"\1", url)


def undo_hint() -> str:
    """Hint for values that `dvc exp run -S` of this stage has written into params.yaml, where they stay; else empty.

    Names the values at HEAD rather than a `git checkout`, which would also delete the user's own changes.
    """
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:  # not on Linux
        return ""
    pairs = zip(words, [*words[1:], ""], strict=True)
    given = [value for word, value in pairs if word in ("-S", "--set-param")]
    given += [word.partition("=")[2] for word in words if word.startswith("--set-param=")]
    given += [word[2:] for word in words if word.startswith("-S") and len(word) > 2]
    committed = run_quiet("git", "show", f"HEAD:./{PARAMS}")
    if not given or not committed:
        return ""
    try:
        values, now = flatten(parse(PARAMS, committed.encode())), flatten(parse(PARAMS, Path(PARAMS).read_bytes()))
    except DataError:
        return ""
    keys = [one.partition("=")[0].lstrip("+~").removeprefix(f"{PARAMS}:") for one in given]
    changed = [key for key in keys if key in values and now.get(key) != values[key]]
    if not changed:
        return ""
    before = " and ".join(f"{key}: {json.dumps(values[key], default=str)}" for key in changed)
    return f"; -S has written this into {PARAMS}: set it back there to {before}"


def run_quiet(*command: str, codes: tuple[int, ...] = (0,)) -> str:
    """Stdout of a program; empty if it is missing, times out or exits with a code not in `codes`."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode in codes else ""


def evaluation_key(params: Params) -> str:
    """Hash of everything that decides an evaluation: its params and all files that it depends on."""
    values = {key: value for key, value in params.flat().items() if key.startswith("evaluate.")}
    sha = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    files = dict(dependency_files("evaluate")) | {str(DETECTOR): DETECTOR}
    update_hash(sha, sorted((name, file) for name, file in files.items() if file.is_file()))
    return sha.hexdigest()[:16]

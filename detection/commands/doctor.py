"""`detection doctor`: list all problems of a dataset, and what makes it hard."""

import argparse
import json
import logging
from pathlib import Path

from detection import params
from detection.data.sources.dataset import examine
from detection.doctor import findings
from detection.errors import DataError

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("name", metavar="DATASET")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all problems to this file")
    parser.add_argument("--model", help="model whose anchors are checked; default: that of params.yaml")


def run(args: argparse.Namespace) -> str:
    """Run the command with parsed flags."""
    return doctor(args.name, json_file=args.json, model=args.model)


def doctor(name: str, json_file: Path | None = None, model: str | None = None) -> str:
    """Read a dataset as `prepare` does, decode every image, and report.

    Args:
        name: Dataset in params.yaml.
        json_file: File for all problems, a list of `{type, action, where, detail}`.
        model: Model whose anchors are compared with the objects; None for that of params.yaml.

    Returns:
        The report: splits, problems per type, reliability of the metrics, label statistics of train, fit of
        the anchors.

    Raises:
        ParamsError: Unknown dataset or model.
        DataError: The data is missing, or has problems that `prepare.checks` sets to `error`; the report is
            logged first.
    """
    loaded = params.load(dataset=name, model=model)
    raw = examine(name, loaded.data, loaded.prepare.checks, decode=True)
    if json_file:
        entries = [{**one._asdict(), "action": raw.problems.action(one.type)} for one in raw.problems.entries]
        try:
            json_file.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"--json {json_file} cannot be written: {error.strerror}") from None
    sections = [
        [f"{name} in {raw.root}"],
        findings.splits(raw),
        findings.problems(raw),
        findings.reliability(raw, loaded.data),
    ]
    train = raw.splits["train"]
    if len(train.labels):
        sections += [
            findings.labels(raw, loaded.recipe),
            findings.anchors(loaded.model, name, loaded.recipe, train, raw.classes),
        ]
    report = "\n\n".join("\n".join(section) for section in sections)
    if refused := raw.problems.refused():
        log.info("%s", report)
        raise DataError(
            f"{name} has {sum(refused.values())} problems that `prepare` refuses ({', '.join(refused)}); fix "
            "them, or set an action for them at prepare.checks in params.yaml"
        )
    return report

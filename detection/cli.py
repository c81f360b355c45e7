"""`detection …`: what a person does outside the pipeline."""

import argparse
import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from detection.data.archives import SOURCES
from detection.errors import DetectionError


def main(argv: list[str] | None = None) -> None:
    """Run one command; prints its text, or one line on stderr and exit code 1."""
    arguments = vars(_parser().parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        print(_run(arguments.pop("command"), arguments))
    except DetectionError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `detection … | head`
        sys.stderr.close()


def _run(command: str, arguments: dict[str, Any]) -> str:
    """Import late: torch and numpy are for the commands that need them, not for `--help`."""
    module = import_module(f"detection.commands.{command}")
    text: str = getattr(module, command)(**arguments)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detection", description="Object detection, as one experiment after another."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    predict = commands.add_parser("predict", help="draw what a trained detector finds on pictures")
    predict.add_argument("source", type=Path, metavar="PICTURE_OR_FOLDER")
    predict.add_argument(
        "--weights", type=Path, default=Path("models/detector.pt"), help="default: %(default)s"
    )
    predict.add_argument("--out", type=Path, default=Path("predictions"), help="default: %(default)s")
    predict.add_argument("--threshold", type=_score, default=0.5, help="lowest score; default: %(default)s")
    predict.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    commands.add_parser("summary", help="the scores of the experiment in this workspace")
    commands.add_parser("check", help="check params.yaml and that its dataset is there")
    browse = commands.add_parser("browse", help="a sheet of a dataset's pictures as a training sees them")
    browse.add_argument("dataset", metavar="DATASET")
    browse.add_argument("--model", help="whose size and augmentation; default: the one of params.yaml")
    browse.add_argument("--augmentation", metavar="POLICY", help="another policy than the model's")
    browse.add_argument("--out", type=Path, default=Path("browse.png"), help="default: %(default)s")
    browse.add_argument("--count", type=int, default=12, help="pictures; default: %(default)s")
    pin = commands.add_parser("pin", help="write a dataset's digest into params.yaml")
    pin.add_argument("name", metavar="DATASET")
    download = commands.add_parser("download", help="fetch a dataset's official archives and unpack them")
    download.add_argument("name", choices=tuple(SOURCES), metavar="DATASET", help=", ".join(SOURCES))
    download.add_argument(
        "--mirror",
        action="append",
        metavar="URL",
        help="a folder with the archives, asked first; may be repeated",
    )
    download.add_argument("--keep", action="store_true", help="keep the archives once they are unpacked")
    commands.add_parser("deps", help="for developers: write dvc.yaml's code dependencies anew")
    return parser


def _score(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a score is between 0 and 1, not {text}")
    return value


if __name__ == "__main__":
    main()

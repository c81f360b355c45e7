"""`detection …`: what a person does outside the pipeline."""

import argparse
import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from detection.data.download.archives import SOURCES
from detection.errors import DetectionError, user_message


def main(argv: list[str] | None = None) -> None:
    """Run one command; prints its text, or one line on stderr and exit code 1."""
    arguments = vars(_parser().parse_args(argv))
    stream = sys.stderr if arguments["command"] == "score" else sys.stdout  # where JSON stands alone
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=stream, force=True)
    try:
        print(_run(arguments.pop("command"), arguments))
    except DetectionError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `detection … | head`
        sys.stderr.close()
    except OSError as error:  # above all a path that was given and cannot be written
        sys.exit(f"error: {user_message(error) or error}")


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
    _add_score(commands.add_parser("score", help="COCO's or VOC's numbers of anybody's detections"))
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
    doctor = commands.add_parser("doctor", help="list what is wrong with a dataset, every picture decoded")
    doctor.add_argument("name", metavar="DATASET")
    doctor.add_argument("--json", type=Path, metavar="FILE", help="write every fault there too")
    doctor.add_argument("--model", help="whose anchors are tried on it; default: that of params.yaml")
    _add_experiments(commands)
    sync = commands.add_parser("sync", help="bring to MLflow what it missed while it was away")
    sync.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help="default: what stands in the workspace"
    )
    return parser


def _add_experiments(commands: Any) -> None:
    compare = commands.add_parser("compare", help="what differs between experiments, and which is better")
    compare.add_argument(
        "experiments",
        nargs="+",
        metavar="EXPERIMENT",
        help="name in `dvc exp show`, id or name of an MLflow row, git revision, or workspace",
    )
    compare.add_argument("--out", type=Path, default=Path("comparison.html"), help="default: %(default)s")
    compare.add_argument("--rounds", type=int, default=1000, help="of the bootstrap; default: %(default)s")
    apply = commands.add_parser("apply", help="bring the experiment of an MLflow row back")
    apply.add_argument("run", metavar="ROW", help="id or name of the row")
    noise = commands.add_parser("noise", help="queue several seeds, and report how far scores vary")
    noise.add_argument("--seeds", type=int, default=5, metavar="N", help="0 to N - 1; default: %(default)s")
    promote = commands.add_parser("promote", help="register a detector in MLflow's model registry")
    promote.add_argument("experiment", metavar="EXPERIMENT", help="as for compare")
    promote.add_argument("--alias", default="champion", help="name that points at it; default: %(default)s")
    promote.add_argument("--name", help="registered model; default: detector-DATASET")


def _add_score(score: argparse.ArgumentParser) -> None:
    score.add_argument("--format", choices=("coco", "voc"), required=True)
    score.add_argument(
        "--detections", type=Path, required=True, help="COCO: results.json; VOC: folder of comp4_det_*.txt"
    )
    score.add_argument("--ground-truth", type=Path, metavar="FILE", help="COCO: instances.json")
    score.add_argument("--devkit", type=Path, metavar="FOLDER", help="VOC: VOCdevkit")
    score.add_argument("--year", help="VOC: 2007 for the folder VOC2007")
    score.add_argument("--image-set", metavar="LIST", help="VOC: test for ImageSets/Main/test.txt")
    score.add_argument(
        "--overlap",
        choices=("at-least", "more-than"),
        default="at-least",
        help="VOC: the least IoU; the devkit says at-least 0.5, its Python translations more-than 0.5",
    )
    score.add_argument(
        "--ties",
        choices=("file", "numpy"),
        default="file",
        help="VOC: equal scores in the order of the file, as the devkit has it, or as numpy's unstable sort "
        "leaves them, as its Python translations have it (the sixth digit then depends on the processor)",
    )
    score.add_argument(
        "--skip-unknown", action="store_true", help="leave out what the ground truth does not know"
    )
    score.add_argument("--verify", action="store_true", help="COCO: run pycocotools too, refuse a difference")
    score.add_argument("--table", action="store_true", help="a table instead of JSON")
    score.add_argument("--report", type=Path, metavar="FOLDER", help="write the whole analysis there")


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a score is between 0 and 1, not {text}")
    return value


if __name__ == "__main__":
    main()

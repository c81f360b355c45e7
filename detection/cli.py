"""`detection …`: what a person does outside the pipeline."""

import argparse
import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from detection.errors import DetectionError, user_message

COMMANDS = {
    "browse": "draw a dataset's augmented training images on one sheet",
    "pin": "write a dataset's digest to params.yaml",
    "download": "download a dataset's official archives and extract them",
    "score": "evaluate detections from COCO or VOC files",
    "doctor": "list a dataset's problems, with every image decoded",
}
"""Commands whose module has `add_arguments` and `run`, with their help."""


def main(argv: list[str] | None = None) -> None:
    """Run one command; prints its text, or one line on stderr and exit code 1."""
    args = _parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
    arguments = vars(args)
    stream = sys.stderr if arguments["command"] == "score" else sys.stdout  # where JSON stands alone
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=stream, force=True)
    try:
        print(args.handler(args) if "handler" in args else _run(arguments.pop("command"), arguments))
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


def _parser(argv: list[str]) -> argparse.ArgumentParser:
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
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name in argv:  # import late: numpy and torch are not for `--help`
            module = import_module(f"detection.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(handler=module.run)
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

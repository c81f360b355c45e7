"""Entry point of `detection COMMAND`: parses flags, dispatches, prints the result or a one-line error."""

import argparse
import io
import logging
import sys
from collections.abc import Collection
from importlib import import_module

from detection.commands import Command
from detection.errors import DetectionError, user_message

COMMANDS = {
    "predict": ("predict", "detect objects on images and videos; JSON, and both with boxes drawn"),
    "export": ("export", "write a detector as ONNX or .pt2, checked against it"),
    "serve": ("serve", "answer HTTP requests with a detector's detections, and serve a page to try it"),
    "score": ("score", "evaluate detections from COCO or VOC files"),
    "summary": ("workspace", "scores of the experiment in the workspace"),
    "check": ("workspace", "validate params.yaml and its dataset"),
    "doctor": ("data", "list a dataset's problems, with every image decoded"),
    "browse": ("data", "draw a dataset's augmented training images on one sheet"),
    "pin": ("data", "write a dataset's digest to params.yaml"),
    "convert": ("data", "write a dataset's splits as COCO, VOC or YOLO"),
    "download": ("download", "download a dataset's official archives and extract them"),
    "compare": ("experiments", "differing params and scores of experiments, and which one is better"),
    "noise": ("experiments", "queue several seeds, and report the variation of the scores"),
    "search": ("search", "search params with Optuna, each trial one experiment, and apply the best"),
    "apply": ("experiments", "restore the experiment of an MLflow run in the workspace"),
    "promote": ("experiments", "register a detector in MLflow's model registry"),
    "sync": ("workspace", "send to MLflow what it missed while it was down"),
}
"""Module of `detection.commands` and help of each command."""


ON_EXPERIMENTS = ("summary", "compare", "noise", "search", "apply", "promote", "sync")


def build_parser(names: Collection[str]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Parser of the command line, and those of its commands; only the named ones have their flags."""
    parser = argparse.ArgumentParser(prog="detection", description="Object-detection experiments.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {one: subparsers.add_parser(one, help=text) for one, (_, text) in COMMANDS.items()}
    for name in names:
        _command(name).add_arguments(parsers[name])
    return parser, parsers


def main(argv: list[str] | None = None) -> None:
    """Run one command; on an error the user can fix, print one line on stderr and exit with 1."""
    argv = sys.argv[1:] if argv is None else argv
    name = next((word for word in argv if word in COMMANDS), None)
    parser, _ = build_parser([name] if name else [])  # other modules are not imported, so that `--help` is fast
    args = parser.parse_args(argv)
    command = _command(args.command)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names that are not UTF-8
    stream = sys.stderr if name == "score" else sys.stdout  # JSON is alone on stdout
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=stream, force=True)
    try:
        print(command.run(args))
        if name in ON_EXPERIMENTS:
            _warn_of_lost_branch()
    except DetectionError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `detection … | head`
        sys.stderr.close()
    except OSError as error:  # a path that cannot be read or written
        sys.exit(f"error: {user_message(error) or error}")


def _command(name: str) -> Command:
    command: Command = import_module(f"detection.commands.{COMMANDS[name][0]}").COMMANDS[name]
    return command


def _warn_of_lost_branch() -> None:
    from detection.experiments.repository import Repository

    try:
        branch = Repository().lost_branch()
    except DetectionError:  # not a repository
        return
    if branch:
        print(
            f"git is on no branch since a `dvc exp run` was killed; to put it back: git checkout {branch}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()

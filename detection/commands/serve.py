"""`detection serve`: an HTTP server of a detector."""

import argparse
import logging
import sys

from detection.commands import Command, add_source
from detection.errors import DataError

log = logging.getLogger(__name__)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_source(parser)
    add("--host", default="127.0.0.1", help="address; 0.0.0.0 for other machines; default: %(default)s")
    add("--port", type=int, default=8000, help="default: %(default)s")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--batch-size", type=int, default=16, metavar="N", help="images per forward pass; default: %(default)s")
    add("--delay-ms", type=float, default=5, help="time to wait for images that are being decoded")
    add("--max-mb", type=float, default=32, help="size of a request; default: %(default)s")
    add("--max-megapixels", type=float, default=50, help="size of an image; default: %(default)s")
    add("--max-waiting", type=int, default=128, metavar="N", help="images that wait; default: %(default)s")
    add("--timeout", type=float, default=60, help="seconds until a request gets 504; default: %(default)s")
    add("--reload", type=float, default=30, help="seconds between looks at the file or alias; default: %(default)s")


def serve(args: argparse.Namespace) -> str:
    """Serve until SIGINT or SIGTERM; requests that are being answered are finished.

    Raises:
        DataError: A package is missing, or no detector has this name.
        CheckpointError: The file is not a detector.
    """
    try:
        import fastapi  # noqa: F401
        import multipart  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise DataError(
            f"serve needs the package {error.name}: pip install fastapi uvicorn python-multipart prometheus-client"
        ) from None
    from detection.serving.app import create_app
    from detection.serving.compute_threads import SWITCH_INTERVAL_S
    from detection.serving.limits import Limits
    from detection.serving.memory import share_arenas
    from detection.serving.model_source import ModelSource

    share_arenas()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    source = ModelSource(args.source, args.device)
    model = source.load()
    limits = Limits(
        batch_size=args.batch_size,
        delay_s=args.delay_ms / 1000,
        body_bytes=int(args.max_mb * 1e6),
        pixels=int(args.max_megapixels * 1e6),
        waiting=args.max_waiting,
        timeout_s=args.timeout,
        reload_s=args.reload,
    )
    predictor = model.predictor
    log.info("%s on %s: http://%s:%d (API: /docs)", predictor.model, predictor.device, args.host, args.port)
    app = create_app(source, model, limits)
    config = uvicorn.Config(
        app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=int(args.timeout)
    )
    server = uvicorn.Server(config)
    app.state.service.is_stopping = lambda: server.should_exit
    server.run()
    if not server.started:
        raise DataError(f"http://{args.host}:{args.port} cannot be served; choose another --port")
    return "stopped"


COMMANDS = {"serve": Command(_add_arguments, serve)}

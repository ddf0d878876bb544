"""`vitrail serve ARTIFACT...`: answer over HTTP with artifacts, without torch."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitrail.cli.numbers import whole_number
from vitrail.errors import MissingExtraError

EXTRA = 'pip install "vitrail[serve]"'
LIBRARIES = {
    "fastapi": "FastAPI",
    "uvicorn": "uvicorn",
    "httptools": "httptools",
    "uvloop": "uvloop",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "artifacts",
        metavar="ARTIFACT",
        nargs="*",
        help="folders that vitrail select wrote; NAME=ARTIFACT gives a model another name than its folder's",
    )
    parser.add_argument("--config", metavar="TOML", help="read settings from a file; options override it")
    parser.add_argument("--new-key", metavar="NAME", help="print a new API key and the line to keep, and end")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--host", metavar="ADDRESS", help="where to listen (127.0.0.1); others need --api-keys"
    )
    where.add_argument(
        "--port", type=whole_number("port"), metavar="N", help="where to listen (8000; 0: any free port)"
    )
    where.add_argument("--api-keys", metavar="FILE", help="hashed keys that --new-key made, one a line")
    where.add_argument(
        "--no-access-log", dest="access_log", action="store_false", default=None, help="log no requests"
    )
    promise = parser.add_argument_group("speed")
    promise.add_argument(
        "--max-latency",
        metavar="TIME",
        help="what a request may take, p95, such as 50ms (what the artifact was selected for)",
    )
    promise.add_argument(
        "--max-queue",
        type=whole_number("max_queue"),
        metavar="N",
        help="images waiting per model (64); more get 429",
    )
    promise.add_argument(
        "--max-queue-megapixels",
        type=whole_number("max_queue_megapixels"),
        metavar="N",
        help="their pixels, in millions (400)",
    )
    promise.add_argument(
        "--max-batch", type=whole_number("max_batch"), metavar="N", help="largest batch that is tried (8)"
    )
    promise.add_argument(
        "--threads",
        type=whole_number("threads"),
        metavar="N",
        help="threads of each engine (the artifact's, within the usable cores)",
    )
    promise.add_argument("--deadline", metavar="TIME", help="a request is given up after this (10s)")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-images", type=whole_number("max_images"), metavar="N", help="images of one request (16)"
    )
    limits.add_argument(
        "--max-body-mib",
        type=whole_number("max_body_mib"),
        metavar="N",
        help="bytes of one request, in MiB (64)",
    )
    limits.add_argument(
        "--max-uploads-mib",
        type=whole_number("max_uploads_mib"),
        metavar="N",
        help="bytes of all open requests (256)",
    )
    limits.add_argument(
        "--max-megapixels",
        type=whole_number("max_megapixels"),
        metavar="N",
        help="largest image, in millions of pixels (50)",
    )
    limits.add_argument(
        "--max-connections", type=whole_number("max_connections"), metavar="N", help="open connections (512)"
    )
    limits.add_argument("--upload-timeout", metavar="TIME", help="a request must arrive within this (30s)")
    change = parser.add_argument_group("another artifact")
    change.add_argument(
        "--shadow",
        metavar="CANDIDATE",
        help="artifact that gets a share of the images too, only to be compared; NAME=CANDIDATE says whose",
    )
    change.add_argument("--shadow-share", type=float, metavar="SHARE", help="of the requests, 0 to 1 (0.1)")
    change.add_argument(
        "--allow-activate",
        metavar="FOLDER",
        help="let artifacts of FOLDER take a model's place, by POST /v1/models/NAME/activate",
    )
    care = parser.add_argument_group("health")
    care.add_argument("--stuck", metavar="TIME", help="restart a model that shows no progress for this (5s)")
    care.add_argument(
        "--drain-grace",
        metavar="TIME",
        help="on SIGTERM, go on taking requests for this long after readiness turned red (0s)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; 0 then."""
    if args.new_key is not None:
        return _new_key(args.new_key)
    for module, library in LIBRARIES.items():
        if find_spec(module) is None:
            raise MissingExtraError(library, EXTRA)
    from vitrail.serve.keys import read_keys
    from vitrail.serve.settings import check, from_toml, served, shadow_of

    artifacts, found = from_toml(args.config) if args.config else ((), {})
    settings = check(_settings(args, found))
    models = served(args.artifacts or artifacts)
    if settings.shadow is not None:
        shadow_of(settings.shadow, [model.name for model in models])  # before anything is started
    keys = None if settings.api_keys is None else read_keys(settings.api_keys)
    from vitrail.serve.start import start

    return start(models, settings, keys)


def _settings(args: argparse.Namespace, found: dict[str, Any]) -> Any:
    """The options given, over the file's values."""
    from vitrail.serve.settings import Settings
    from vitrail.units import duration_ms

    given: dict[str, Any] = {}
    for field in fields(Settings):
        option = field.name.removesuffix("_ms")
        value = getattr(args, option, None)
        if value is None:
            continue
        if field.name.endswith("_ms"):
            value = duration_ms(value, f"--{option.replace('_', '-')}")
        elif field.name in ("api_keys", "allow_activate"):
            value = Path(value)
        given[field.name] = value
    return replace(Settings(), **{**found, **given})


def _new_key(name: str) -> int:
    from vitrail.serve.keys import new_key

    key, line = new_key(name)
    print("The key, which is shown only here:", file=sys.stderr)
    print(key, flush=True)
    print("Its line for the file of --api-keys:", file=sys.stderr)
    print(line)
    return 0

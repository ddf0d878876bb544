"""`vitrail serve ARTIFACT...`: answer over HTTP with artifacts, without torch."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vitrail.cli.numbers import whole_number


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
    cluster = parser.add_argument_group("on a Ray cluster")
    cluster.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="serve on a Ray cluster: this machine's, or the one at ADDRESS",
    )
    cluster.add_argument(
        "--replicas", metavar="N|MIN-MAX", help="servers there (1); of a range, as many as the load needs"
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
        help="threads of each engine (the artifact's, within the usable cores; with --ray, else 1)",
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
    limits.add_argument(
        "--keep-photos",
        type=whole_number("keep_photos"),
        metavar="N",
        help="photos whose embeddings a model that takes prompts keeps (32)",
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
    from vitrail.serve import scale
    from vitrail.serve.installed import check_installed
    from vitrail.serve.keys import read_keys
    from vitrail.serve.settings import Settings, check, from_toml, served, shadow_of

    check_installed()
    artifacts, found = from_toml(args.config) if args.config else ((), {})
    given = {**found, **_given(args)}
    settings = check(replace(Settings(), **given))
    scale.check(settings)
    models = served(args.artifacts or artifacts)
    if settings.shadow is not None:
        shadow_of(settings.shadow, [model.name for model in models])  # before anything is started
    keys = None if settings.api_keys is None else read_keys(settings.api_keys)
    if settings.ray is not None:
        from vitrail.serve.ray import start as start_on_cluster

        return start_on_cluster(models, settings, keys, fixed={"host", "port"} & set(given))
    from vitrail.serve.start import start

    return start(models, settings, keys)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that options say."""
    from vitrail.serve.settings import EITHER, Settings
    from vitrail.units import duration_ms

    given: dict[str, Any] = {}
    for field in fields(Settings):
        option = field.name.removesuffix("_ms")
        value = getattr(args, option, None)
        if value is None:
            continue
        if field.name.endswith("_ms"):
            value = duration_ms(value, f"--{option.replace('_', '-')}", EITHER)
        elif field.name in ("api_keys", "allow_activate"):
            value = Path(value)
        given[field.name] = value
    return given


def _new_key(name: str) -> int:
    from vitrail.serve.keys import new_key

    key, line = new_key(name)
    print("The key, which is shown only here:", file=sys.stderr)
    print(key, flush=True)
    print("Its line for the file of --api-keys:", file=sys.stderr)
    print(line)
    return 0

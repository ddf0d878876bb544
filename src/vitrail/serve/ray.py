"""The same server as an application of Ray Serve: replicas on a cluster, behind Ray's proxies.

The command is a driver: it looks whether the nodes can serve, deploys, waits, and deletes its application at
the end. One that was killed leaves its application behind, serving; the next takes it over.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import Any

from vitrail import cluster
from vitrail.artifact import open_artifact
from vitrail.errors import InputError, MissingExtraError
from vitrail.serve import scale, settings
from vitrail.serve.keys import Keys
from vitrail.serve.listen import bind
from vitrail.serve.model import TRY_S
from vitrail.serve.nodes import Setup, refusal
from vitrail.serve.replica import TOLD, Hosted, Replica
from vitrail.serve.settings import Served, Settings
from vitrail.version import __version__
from vitrail.words import counted

__all__ = ["start"]

INSTALL = 'pip install "vitrail[serve,ray]"'
NAME = "vitrail"
"""Of the application, and of what a command holds while it is there."""
HOLDER = "the command that serves"
CLAIM_S = 10.0
"""A command that was killed holds on for a moment."""
LEAVE_S = 5.0
"""Beyond what receiving and answering a request may take."""
DRAIN_LOOK_S = 0.5
HEALTH_S = 5.0
"""Between health checks, which also find replicas that died: three in a row that fail replace a replica."""
STARTS = 3
"""A replica that does not get ready so often has a reason."""
LOOK_S = 0.5
NOTICE_S = 15.0


def start(
    models: Sequence[Served], asked: Settings, keys: Keys | None, *, fixed: Collection[str] = ()
) -> int:
    """Serve on a cluster until SIGTERM or Ctrl-C; 0 once the application is deleted again.

    Args:
        models: folders that exist here, and on each node under the same path.
        asked: `asked.ray` is the cluster's address.
        keys: who may come in; None: whoever reaches the proxies.
        fixed: `host`, `port` where the user chose them: Ray's proxies may listen elsewhere already.

    Raises:
        InputError: there is no cluster, a node lacks something, or a model cannot be served.
        MissingExtraError: Ray Serve is not installed.
    """
    ray, serve = _check_installed()
    assert asked.ray is not None
    setup, cores = _setup(models, asked, keys)
    # SystemExit is Ray's answer to SIGTERM while it connects.
    with _Signals() as signals, suppress(SystemExit), cluster.connected(ray, asked.ray):
        application = _Application(ray, serve, setup, cores)
        try:
            with suppress(_Leave):
                signals.listen()
                application.run(fixed)
        finally:
            signals.hurry()
            with suppress(_Leave):  # a second Ctrl-C
                application.end()
    return 0


def _check_installed() -> tuple[Any, Any]:
    ray = cluster.check_installed()
    try:
        from ray import serve
    except ImportError:
        raise MissingExtraError("Ray Serve, which --ray needs,", INSTALL) from None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return ray, serve


def _setup(models: Sequence[Served], asked: Settings, keys: Keys | None) -> tuple[Setup, int]:
    """What replicas get, and the cores of each: those of its engines, as decoding shares them everywhere."""
    models = tuple(replace(model, path=model.path.resolve()) for model in models)
    paths = [model.path for model in models]
    if asked.shadow is not None:
        name, path = settings.shadow_of(asked.shadow, [model.name for model in models])
        paths.append(path.resolve())
        asked = replace(asked, shadow=f"{name}={path.resolve()}")
    artifacts = {path: open_artifact(path) for path in paths}
    asked = replace(asked, threads=scale.threads_of(list(artifacts.values()), asked))
    assert asked.threads is not None
    digests = {path: artifact.digest for path, artifact in artifacts.items()}
    setup = Setup(vitrail=__version__, models=models, digests=digests, settings=asked, keys=keys)
    return setup, asked.threads * len(paths)


class _Leave(BaseException):
    """SIGTERM or Ctrl-C."""


class _Signals:
    """Raise `_Leave` in the main thread; Ray's own handlers come back at the end."""

    ASKED = (signal.SIGTERM, signal.SIGINT)

    def __enter__(self) -> _Signals:
        self._before = {number: signal.getsignal(number) for number in self.ASKED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """From now on."""
        for number in self.ASKED:
            signal.signal(number, self._leave)

    def hurry(self) -> None:
        """From now on only for Ctrl-C: whoever ends a service sends SIGTERM more than once."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, self._leave)

    @staticmethod
    def _leave(number: int, frame: FrameType | None) -> None:
        raise _Leave


class _Holder:
    """An actor that ends with its command: who else finds it knows that the command lives."""


class _Application:
    """Ours among the cluster's, and whether the command started Ray Serve itself."""

    def __init__(self, ray: Any, serve: Any, setup: Setup, cores: int) -> None:
        self.ray, self.serve, self.setup, self.cores = ray, serve, setup, cores
        self.deployed = self.began_serve = False
        self.holder: Any = None
        self.gone = (ray.exceptions.RayError, serve.exceptions.RayServeException)
        """What a cluster or a Ray Serve that has ended raises."""

    def run(self, fixed: Collection[str]) -> None:
        """Until `_Leave`. Raises InputError as `start`."""
        try:
            self._claim()
            self._check_nodes()
            self._listen(fixed)
            self._deploy()
            self._wait()
            self._tell()
            self._watch()
        except self.gone as error:
            raise InputError(
                f"The cluster does not answer ({cluster.first_line(error)}): see what `ray status` says."
            ) from None

    def end(self) -> None:
        """Delete the application once its requests are answered; what others run stays."""
        if self.deployed:
            with suppress(*self.gone):  # then there is nothing to delete
                self.serve.delete(NAME, _blocking=False)
                while NAME in self.serve.status().applications:
                    time.sleep(LOOK_S)
        if self.began_serve:
            with suppress(*self.gone):
                if not self.serve.status().applications:
                    self.serve.shutdown()

    # --- before ---------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Be the only command that serves on this cluster."""
        holder = self.ray.remote(num_cpus=0)(_Holder).options(name=HOLDER, namespace=NAME)
        patience = time.monotonic() + CLAIM_S
        while self.holder is None:
            try:
                self.holder = holder.remote()
            except ValueError:  # the name is taken
                if time.monotonic() > patience:
                    raise InputError(
                        "Another `vitrail serve --ray` serves on this cluster: end it first, or give it all "
                        "artifacts."
                    ) from None
                time.sleep(LOOK_S)

    def _check_nodes(self) -> None:
        """Raise InputError if no node has the cores of a replica, or one that has cores lacks something.

        A cluster without any is one whose nodes are only started for work: then it is right to wait.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
        most = max((int(node["Resources"]["CPU"]) for node in nodes), default=0)
        if 0 < most < self.cores:
            raise InputError(
                f"Each replica asks for {self.cores} cores, and no node of the cluster has more than "
                f"{counted(most, 'core')}: add a node that has, or give fewer with --threads."
            )
        task = self.ray.remote(num_cpus=0)(refusal)
        answers = []
        for node in nodes:
            here = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            answer = task.options(scheduling_strategy=here).remote(self.setup)
            answers.append((node["NodeName"], answer))
        for name, answer in answers:
            try:
                refused = self.ray.get(answer)
            except self.ray.exceptions.RayTaskError as error:
                raise InputError(
                    f"The node {name} cannot serve ({cluster.first_line(error.cause)}): install Vitrail "
                    f"{__version__} there, with its extras serve and ray."
                ) from None
            if refused is not None:
                raise InputError(refused)

    def _listen(self, fixed: Collection[str]) -> None:
        """Have Ray's proxies listen where we were told to, or learn where they do.

        Raises:
            InputError: they listen elsewhere, where others can reach them and there are no keys, or nowhere.
        """
        from ray.serve.context import _get_global_client  # how all of Ray Serve's own functions begin

        asked = self.setup.settings
        client = _get_global_client(raise_if_no_controller_running=False)
        if client is None:
            bind(asked.host, asked.port).close()  # Ray's proxies would try a taken port for a minute
            self.began_serve = True
            self.serve.start(
                proxy_location="EveryNode",
                http_options={"host": asked.host, "port": asked.port, "request_timeout_s": self._longest_s()},
                logging_config={"enable_access_log": False},  # replicas write ours
            )
            return
        there = client.http_config
        if there.host is None:
            raise InputError("Ray Serve runs on this cluster without HTTP: end it with `serve shutdown`.")
        if any(getattr(asked, name) != getattr(there, name) for name in fixed):
            raise InputError(
                f"Ray Serve listens on {there.host}:{there.port} on this cluster already: leave --host and "
                "--port out, or end it with `serve shutdown`."
            )
        listening = settings.check(replace(asked, host=there.host, port=there.port))
        self.setup = replace(self.setup, settings=listening)

    def _longest_s(self) -> float:
        asked = self.setup.settings
        return (asked.upload_timeout_ms + asked.deadline_ms) / 1e3 + LEAVE_S

    # --- serving --------------------------------------------------------------------------------

    def _deploy(self) -> None:
        if NAME in self.serve.status().applications:
            _say("taking over the application that an earlier command left behind")
        target = self.serve.RunTarget(target=self._deployment().bind(), name=NAME, route_prefix="/")
        self.deployed = True
        try:
            self.serve.run_many([target], wait_for_applications_running=False)
        except self.ray.exceptions.RayTaskError as error:
            self.deployed = False
            raise InputError(
                f"The cluster does not take the application ({cluster.first_line(error.cause)}): delete what "
                "answers at / there already."
            ) from None

    def _deployment(self) -> Any:
        asked = self.setup.settings
        least, most = scale.replicas_of(asked.replicas)
        many = {"num_replicas": least}
        if most > least:
            scaling = {
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": scale.target_requests(asked),
            }
            many = {"autoscaling_config": scaling}  # type: ignore[dict-item]
        return self.serve.deployment(
            name="server",
            ray_actor_options={"num_cpus": self.cores},
            # Our own queue refuses long before: Ray's would hold requests back without an answer.
            max_ongoing_requests=asked.max_connections,
            max_queued_requests=asked.max_connections,
            health_check_period_s=HEALTH_S,
            health_check_timeout_s=max(TRY_S, asked.deadline_ms / 1e3) + LEAVE_S,
            graceful_shutdown_wait_loop_s=DRAIN_LOOK_S,
            graceful_shutdown_timeout_s=self._longest_s(),
            max_constructor_retry_count=STARTS,
            logging_config={"enable_access_log": False},
            **many,
        )(self.serve.ingress(Hosted(self.setup))(Replica))

    def _wait(self) -> None:
        """Until as many replicas as asked for are ready. Raises InputError if they do not get so."""
        notice = time.monotonic() + NOTICE_S
        while True:
            found = self._status()
            if found.status == "RUNNING":
                return
            if found.status == "DEPLOY_FAILED":
                raise InputError(_reason(_told(found)))
            if notice is not None and time.monotonic() > notice:
                free = self.ray.available_resources().get("CPU", 0)
                _say(
                    f"still waiting for replicas, each with {counted(self.cores, 'core')} on one node; "
                    f"free on the cluster: {free:g}"
                )
                notice = float("inf")
            time.sleep(LOOK_S)

    def _tell(self) -> None:
        asked = self.setup.settings
        least, most = scale.replicas_of(asked.replicas)
        names = ", ".join(model.name for model in self.setup.models)
        many = counted(most, "replica") if least == most else f"{least} to {most} replicas"
        shown = f"[{asked.host}]" if ":" in asked.host else asked.host
        _say(f"serving {names} on http://{shown}:{asked.port}, {many} of {counted(self.cores, 'core')}")

    def _watch(self) -> None:
        """Say when the application becomes unhealthy or healthy again. Raises InputError when it is gone."""
        before = "RUNNING"
        while True:
            time.sleep(LOOK_S)
            found = self._status()
            if found.status != before:
                told = f": {_reason(_told(found))}" if TOLD in _told(found) else ""
                _say(f"the application is {found.status.value.lower()}{told}")
                before = found.status

    def _status(self) -> Any:
        """Raises InputError if somebody has deleted the application, or Ray Serve with it."""
        try:
            found = self.serve.status().applications.get(NAME)
        except self.ray.exceptions.RayActorError:
            found = None
        if found is None or found.status == "DELETING":
            self.deployed = False
            raise InputError("Somebody else has deleted the application from the cluster: start it again.")
        return found


def _say(text: str) -> None:
    print(f"vitrail: {text}", file=sys.stderr, flush=True)


def _told(application: Any) -> str:
    """What Ray tells of an application and, where the reasons are, of its deployment."""
    parts = (application, *application.deployments.values())
    return "\n".join(part.message for part in parts)


def _reason(message: str) -> str:
    """Our sentence in what Ray tells of a replica that does not get ready: its last traceback."""
    _, found, sentence = message.rpartition(TOLD)
    if found:
        return sentence.splitlines()[0]
    lines = message.strip().splitlines() or ["no reason is known"]
    return f"Replicas do not get ready ({lines[-1][:200].rstrip('.')}): see Ray's logs of them."

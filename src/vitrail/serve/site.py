"""What all requests share: settings, models, keys, metrics, and whether the server is on its way out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from vitrail.serve.keys import Keys
from vitrail.serve.metrics import Metrics
from vitrail.serve.model import Model
from vitrail.serve.refusals import Refusal
from vitrail.serve.settings import Served, Settings, shadow_of
from vitrail.serve.shadow import Shadow
from vitrail.serve.uploads import Uploads

__all__ = ["Site"]

ADDRESSES = {"promptable": "segment"}
"""Task -> the end of its address, where that is not the task's name."""


@dataclass(eq=False)
class Site:
    """One server."""

    settings: Settings
    metrics: Metrics
    models: dict[str, Model]
    uploads: Uploads
    keys: Keys | None = None
    replica: str = ""
    """Which of several servers behind one address this is; "": the only one."""
    leaving: bool = False
    """Readiness is red; requests are still taken."""
    closed: bool = False
    """Nothing new is taken."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    def of(
        cls, served: Sequence[Served], settings: Settings, keys: Keys | None, *, replica: str = ""
    ) -> Site:
        """A server whose models' processes have just been started."""
        metrics = Metrics(replica)
        models: dict[str, Model] = {}
        for one in served:
            models[one.name] = model = Model(one, settings, metrics)
            metrics.watch(one.name, model.queue)
        if settings.shadow is not None:
            shadowed, path = shadow_of(settings.shadow, models)
            models[shadowed].shadow = Shadow(models[shadowed], path, settings, metrics)
        uploads = Uploads(
            body_bytes=settings.max_body_mib << 20,
            all_bytes=settings.max_uploads_mib << 20,
            timeout_s=settings.upload_timeout_ms / 1e3,
        )
        return cls(
            settings=settings, metrics=metrics, models=models, uploads=uploads, keys=keys, replica=replica
        )

    async def start(self) -> None:
        """Wait until all models are ready. Raises InputError as `Model.start`."""
        await asyncio.gather(*(model.start() for model in self.models.values()))

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(model.close() for model in self.models.values()))

    async def check(self) -> dict[str, list[str]]:
        """Why models are not ready, by their names; empty: all are."""
        found = await asyncio.gather(*(model.check() for model in self.models.values()))
        return {name: reasons for name, reasons in zip(self.models, found, strict=True) if reasons}

    def model(self, name: str | None, *tasks: str) -> Model:
        """The named model, or the only one; `tasks`: it must be for one of these, unless there are none.

        Raises:
            Refusal: there is none of that name, or several and none is named.
        """
        if name is not None:
            found = self.models.get(name)
            if found is None:
                raise Refusal(
                    "not_found", f"There is no model of this name: choose {self._names(self.models)}."
                )
            if tasks and found.facts.task not in tasks:
                address = ADDRESSES.get(found.facts.task, found.facts.task)
                raise Refusal(
                    "bad_request",
                    f"The model {found.name} is for {found.facts.task}: send this to /v1/{address}.",
                )
            return found
        fitting = [m for m in self.models.values() if not tasks or m.facts.task in tasks]
        if len(fitting) == 1:
            return fitting[0]
        if not fitting:
            raise Refusal("not_found", f"No model here is for {' or '.join(tasks)}.")
        raise Refusal(
            "bad_request", f"Name one of the models with ?model=: {self._names(m.name for m in fitting)}."
        )

    @staticmethod
    def _names(names: object) -> str:
        return ", ".join(names)  # type: ignore[arg-type]

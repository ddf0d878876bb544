"""The bounded queue of one model: what is accepted and not yet answered, in images and in pixels.

One rule for single and batched requests: all of a request fits, or none of it is taken. Where a latency is
promised, no more is taken than can be answered within it.
"""

from __future__ import annotations

import math
import time

from vitrail.serve.refusals import Refusal

__all__ = ["Queue"]

HEADROOM = 0.5
"""The share of a promised latency that the queue may take on average: the promise is of the 95th percentile,
and a request has to be received too."""
MEMORY = 0.1
"""Weight of a new observation in the moving average of the time per image."""


class Queue:
    """Counts images and pixels in one event loop; `take` and `give_back` come in pairs."""

    def __init__(self, images: int, pixels: int) -> None:
        self.most_images, self.most_pixels = images, pixels
        self.promise_s: float | None = None
        """Largest time in the queue; None: not limited."""
        self.images = self.pixels = 0
        self.seconds_per_image: float | None = None
        """While busy; None: not known yet."""
        self._since: float | None = None

    def check(self, images: int, pixels: int) -> None:
        """Raise the Refusal that `take` would."""
        if images > self.most_images or pixels > self.most_pixels:
            raise Refusal("too_large", "The request is larger than the whole queue: send less at once.")
        if self.images + images <= self.most_images and self.pixels + pixels <= self.most_pixels:
            if self.promise_s is None or self.seconds_per_image is None or not self.images:
                return
            if (self.images + images) * self.seconds_per_image <= HEADROOM * self.promise_s:
                return
        raise Refusal("queue_full", "The queue is full: try again later.", retry_after=self.retry_after())

    def take(self, images: int, pixels: int) -> None:
        """Count a request.

        Raises:
            Refusal: it does not fit.
        """
        self.check(images, pixels)
        self.images += images
        self.pixels += pixels
        if self._since is None:
            self._since = time.monotonic()

    def give_back(self, images: int, pixels: int, *, done: int) -> None:
        """A request is answered with `done` results, or given up and no longer worked on: 0.

        Only results tell of the pace: what is given up, or no image, is settled in no time.
        """
        now = time.monotonic()
        busy = self.images > images
        self.images -= images
        self.pixels -= pixels
        if done and self._since is not None:
            if busy or self.seconds_per_image is None:
                seen = (now - self._since) / done
                before = self.seconds_per_image
                self.seconds_per_image = seen if before is None else before + MEMORY * (seen - before)
            self._since = now
        if not self.images:
            self._since = None

    def retry_after(self) -> int:
        """Whole seconds after which the queue should have moved on."""
        return max(1, math.ceil(self.images * (self.seconds_per_image or 0.0)))

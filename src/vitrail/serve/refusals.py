"""Why a request gets no result: one table of codes, each with its HTTP status (docs/serving.md)."""

from __future__ import annotations

__all__ = ["CODES", "FAILED", "Refusal"]

CODES: dict[str, int] = {
    "bad_request": 400,
    "unauthorised": 401,
    "forbidden": 403,
    "not_found": 404,
    "unknown_image": 404,
    "method_not_allowed": 405,
    "upload_timeout": 408,
    "conflict": 409,
    "too_large": 413,
    "unsupported_media": 415,
    "wrong_host": 421,
    "unusable_image": 422,
    "unusable_artifact": 422,
    "queue_full": 429,
    "uploads_full": 429,
    "failed": 500,
    "not_ready": 503,
    "worker_died": 503,
    "draining": 503,
    "deadline": 504,
}
"""code -> HTTP status. Those from 500 on are the only ones that a well-formed request can meet."""

FAILED = "The server failed on this request; its log says more."
"""With the code `failed`."""

RETRY = ("queue_full", "uploads_full", "not_ready", "worker_died", "draining")


class Refusal(Exception):
    """A request ends here, with a code and a sentence for whoever sent it.

    `retry_after`: whole seconds after which trying again may help, where it may.
    """

    def __init__(self, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.status = CODES[code]
        self.retry_after = 1 if retry_after is None and code in RETRY else retry_after

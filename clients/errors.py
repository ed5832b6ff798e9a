"""One tree of exceptions. Each message says what happened, where, what was found, and what to do, on one line."""


class LLMInferenceError(Exception):
    """Root of every error this package raises on purpose; entry points print it as one line, without a traceback."""

    exit_code = 1


class SettingsError(LLMInferenceError):
    """A flag, parameter or environment value that the user has to mend."""

    exit_code = 2


class PromptsError(SettingsError):
    """The prompts as a whole cannot be used (missing, empty, not JSONL). A single bad row is data, never this error."""


class EndpointError(LLMInferenceError):
    """The endpoint as a whole cannot be used: unreachable, not an OpenAI-compatible API, wrong key, unknown model."""


class ServingError(LLMInferenceError):
    """The model cannot be deployed, will not come up, or cannot be released."""


class ApiError(ServingError):
    """The Kubernetes API server refused a request.

    Attributes:
        status: HTTP status, or 0 when no answer came.
        reason: The server's word for it, such as `Conflict`.
    """

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class ForbiddenError(ApiError):
    """The account lacks a right (403); the message holds the rule to apply."""


class ConflictError(ApiError):
    """Somebody else changed or owns what was to be changed (409)."""


class MissingKindError(ApiError):
    """The cluster does not know this kind of object: the software that brings it is not installed."""


class UnreachableApiError(ApiError):
    """The API server did not answer, for as long as was sensible to try."""


class StorageError(LLMInferenceError):
    """A folder or object store refuses what has to be kept there: no space, no permission, not reachable."""


class LedgerInUseError(StorageError):
    """Another process is working on the same shard right now."""


class LocalServerError(LLMInferenceError):
    """The embedded model server cannot be fetched or started on this machine."""


class BudgetError(LLMInferenceError):
    """The run finished and its files stand, but more rows went wrong than the run allows."""


class ChatError(LLMInferenceError):
    """One chat request did not yield an answer.

    Attributes:
        code: Short machine-readable reason that becomes the row's `error_code`, such as `http_503` or `timeout`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RejectedError(ChatError):
    """The server says that this request can never work (a 4xx other than 408, 409, 425 and 429): not retried."""


class TransientError(ChatError):
    """Worth another attempt: 5xx, a reset, a timeout, a broken or incomplete body."""


class OverloadedError(TransientError):
    """The server asks for less (429, 503).

    Attributes:
        retry_after_s: Seconds the server asked us to wait, or None when it named none.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s


class UnreachableError(TransientError):
    """No connection could be made at all, so the server never saw the request: costs the row no attempt."""

"""The settings of a run: built once from the command line, checked, and passed on."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from clients.batch.options import RunOptions
from clients.errors import SettingsError

#: An answer of the embedded model ends here unless the row or the command says otherwise: it writes some 50 tokens/s.
EMBEDDED_MAX_TOKENS = 128

#: Requests in flight: enough to keep the embedded server's four slots filled.
EMBEDDED_CONCURRENCY = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What `python -m pipelines.run` was asked to do.

    Attributes:
        prompts: The input file.
        output: Folder for results, logs and state.
        url: Endpoint; "" starts the embedded server.
        model: Model name; "" takes what the endpoint lists.
        gguf: The embedded server's model; None for the one it brings.
        system_prompt: First message of rows that have no system message.
        request_defaults: Request fields of rows that have no such field.
        template: User message with `{name}` where a column's value goes; "" takes a row's own.
        batch_output: File that gets the answers as OpenAI batch lines; None for no such file.
        shards: Number of shards.
        concurrency: Most requests in flight over all shards; 0 leaves it to the engine.
        max_error_rate: Share of the rows, 0 to 1, that may go wrong.
        server_wait_s: Seconds to wait for an endpoint that cannot be reached.
        fresh: Whether to answer every row anew.
        options: See RunOptions.
    """

    prompts: Path
    output: Path
    url: str = ""
    model: str = ""
    gguf: Path | None = None
    system_prompt: str = ""
    request_defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    template: str = ""
    batch_output: Path | None = None
    shards: int = 4
    concurrency: int = 0
    max_error_rate: float = 0.2
    server_wait_s: int = 30
    fresh: bool = False
    options: RunOptions = dataclasses.field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        if self.url and self.gguf:
            raise SettingsError("--gguf is for the embedded server and --url for another one; give only one of them")
        if self.model and not self.url:
            raise SettingsError(
                "--model chooses among the models of --url; for the embedded server give --gguf instead"
            )
        if self.shards < 1:
            raise SettingsError(f"--shards must be at least 1, found {self.shards}")


def api_key() -> str | None:
    """The endpoint's key, from OPENAI_API_KEY; empty means none. The steps inherit it from this process."""
    return os.environ.get("OPENAI_API_KEY") or None

"""Batch inference from Python and notebooks: run a batch, read its results.

    from clients import run_batch

    result = run_batch(["What is tea?", "What is rice?"], url="http://localhost:8000/v1", output="results/mine")
    result.to_pandas()[["content", "outcome"]]

The words are those of the pipelines' parameters. For pipelines with steps of your own see `examples/`.
"""

import contextlib
import dataclasses
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.errors import LLMInferenceError, SettingsError
from clients.events import parse

if TYPE_CHECKING:
    import pandas as pd

#: A process of its own runs the batch: a notebook has an event loop and signal handlers, and keeps what it once loaded.
_ENGINE = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module('clients.batch', run_name='__main__', alter_sys=True)"
)

#: Options whose flag is not called as they are.
_FLAGS = {"time_limit_s": "--time-limit"}

#: Flags whose argument is not called as they are.
_ARGUMENTS = {
    "system": "system_prompt",
    "server-wait": "server_wait_s",
    "param": "request_defaults",
    "max-tokens": "request_defaults max_tokens",
}

#: Options that say something to pipelines only, or that are arguments here.
_NOT_HERE = ("deadline", "fresh", "max_error_rate", "reuse", "run_url")


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """What a batch came to.

    Attributes:
        output: Folder with results.parquet, rejects.parquet, report.html and summary.json.
        summary: What stands in summary.json: rows, outcomes, tokens, seconds.
    """

    output: Path
    summary: Mapping[str, Any]

    def __repr__(self) -> str:
        """One line, which is what a notebook shows of it."""
        outcomes = ", ".join(f"{number:,} {word}" for word, number in self.summary["outcomes"].items() if number)
        return f"<BatchResult: {self.summary['rows']:,} rows ({outcomes}) in {self.output}>"

    def to_pandas(self, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """One row for every input row, in input order; `columns` reads only these."""
        return read_results(self.output, columns)

    def rejects(self) -> "pd.DataFrame":
        """The rows that did not end ok, with the reasons."""
        return read_results(self.output / "rejects.parquet")


class BatchFailedError(LLMInferenceError):
    """A batch failed; its message says why and what to do.

    Attributes:
        exit_code: As that of `python -m clients.batch`.
        result: What was written all the same, as when too many rows went wrong; None when nothing was.
    """

    def __init__(self, message: str, *, exit_code: int, result: BatchResult | None) -> None:
        super().__init__(message)
        self.exit_code, self.result = exit_code, result


def run_batch(
    prompts: str | Path | Iterable[str | Mapping[str, Any]],
    *,
    url: str,
    output: str | Path = "results/batch",
    model: str = "",
    system_prompt: str = "",
    request_defaults: Mapping[str, Any] | None = None,
    template: str = "",
    concurrency: int = 0,
    max_error_rate: float = 0.2,
    server_wait_s: int = 30,
    fresh: bool = False,
    options: Mapping[str, Any] | None = None,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> BatchResult:
    """Run prompts against an OpenAI-compatible endpoint, and wait until each has an answer or a reason.

    The same call again goes on where the last one stopped; it sends only what has no answer yet. The endpoint's key is
    read from OPENAI_API_KEY.

    Args:
        prompts: A file (JSONL, CSV, TSV or Parquet), or rows: texts, or mappings such as {"prompt": "…", "id": "a"}.
        url: Address of the endpoint, or several divided by commas.
        output: Folder for the results and for what a later call goes on with.
        model: Name of the model; "" takes the first one the endpoint lists.
        system_prompt: First message of rows that have no system message of their own.
        request_defaults: Request fields that a row gets unless it has its own, such as {"max_tokens": 1024}.
        template: User message with {name} where a column's value goes; "" takes a row's own prompt or messages.
        concurrency: Most requests in flight; 0 lets the engine find out what the server can run.
        max_error_rate: Share of the rows, 0 to 1, that may go wrong before the batch counts as failed.
        server_wait_s: Seconds to wait for an endpoint that cannot be reached.
        fresh: Answer every row anew.
        options: Further choices, as in the pipelines: {"retry": "truncated", "time_limit_s": 3600}.
        on_event: Told of each event as it comes, such as {"event": "shard.progress", "done": 120, "rows": 1000, …}.

    Raises:
        SettingsError: the prompts or an argument cannot be used.
        BatchFailedError: the batch failed; results that were written are in its `result`.
    """
    folder = Path(output)
    flags = {
        "--prompts": _file_of(prompts, folder),
        "--output": str(folder),
        "--url": url,
        "--model": model,
        "--system": system_prompt,
        "--template": template,
        "--concurrency": concurrency,
        "--max-error-rate": max_error_rate,
        "--server-wait": server_wait_s,
    }
    words = [f"{flag}={value}" for flag, value in flags.items()] + (["--fresh"] if fresh else [])
    words += [f"--param={name}={json.dumps(value)}" for name, value in (request_defaults or {}).items()]
    before = _written(folder)
    exit_code, said = _run([*words, *_options(options or {})], on_event)
    return _outcome(exit_code, said, folder, before)


def read_results(location: str | Path, columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """Read the results of a run, whether they are one file or a dataset of several.

    Args:
        location: A run's output folder, or one of its Parquet files: a path or an address such as s3://bucket/out.
        columns: Only these; None reads all.

    Raises:
        SettingsError: there are no results, or not such columns.
        StorageError: the place cannot be read.
    """
    import pyarrow as pa
    from pyarrow import dataset, fs

    from clients.steps.store_access import reach_stores
    from clients.storage import is_uri, refusals
    from clients.storage.object_stores import connect

    place = str(location)
    with refusals("read", place):
        reach_stores("")
        store, path = connect(place) if is_uri(place) else (fs.LocalFileSystem(), str(Path(place).resolve()))
        places = [f"{path}/results.parquet", f"{path}/results", path]
        known = [found.path for found in store.get_file_info(places) if found.type != fs.FileType.NotFound]
        if not known:
            raise SettingsError(f"there are no results at {place}. Give the --output of a run, or a Parquet file")
        try:
            found = dataset.dataset(known[0], filesystem=store, format="parquet")
            return found.to_table(columns=None if columns is None else list(columns)).to_pandas()
        except pa.ArrowInvalid as error:
            raise SettingsError(f"cannot read {place}: {' '.join(str(error).split())[:300]}") from error


def _file_of(prompts: str | Path | Iterable[str | Mapping[str, Any]], folder: Path) -> str:
    """The prompts as a file; rows are written into the folder of the results."""
    if isinstance(prompts, str | Path):
        return str(prompts)
    path = folder / "prompts.jsonl"
    rows = ({"prompt": row} if isinstance(row, str) else dict(row) for row in prompts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    except TypeError as error:
        raise SettingsError(
            f"a row of prompts cannot be written as JSON: {error}. Give texts, numbers, lists"
        ) from error
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}. Choose another output") from error
    return str(path)


def _options(options: Mapping[str, Any]) -> list[str]:
    """Options as flags of the engine.

    Raises:
        SettingsError: an unknown one, or a value out of its range.
    """
    from clients.batch.options import RunOptions

    for name in _NOT_HERE:
        if name in options:
            raise SettingsError(f"options: {name} is of no use here; see the arguments of run_batch")
    words: list[str] = []
    for name, value in RunOptions.from_json(options).to_json().items():
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        if name == "join_duplicates":
            words.append("--keep-duplicates")
        elif value is True:
            words.append(flag)
        else:
            words.append(f"{flag}={_text(value)}")
    return words


def _text(value: Any) -> str:
    """A value as a flag takes it: lists and mappings divided by commas."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={item}" for name, item in value.items())
    return ",".join(value) if isinstance(value, list) else str(value)


def _run(words: Sequence[str], on_event: Callable[[Mapping[str, Any]], None] | None) -> tuple[int, str]:
    """Run the engine; returns its exit code and the last thing it said."""
    root = str(Path(__file__).resolve().parent.parent)
    said = ""
    with (
        subprocess.Popen(
            [sys.executable, "-P", "-c", _ENGINE, root, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        ) as process,
        contextlib.ExitStack() as on_failure,
    ):
        on_failure.callback(_interrupt, process)  # after a Ctrl-C, or whatever `on_event` raises
        for line in process.stderr or ():
            event = parse(line)
            if event is None:
                said = line.strip() or said
            elif on_event is not None:
                on_event(event)
        on_failure.pop_all()
    return process.returncode, _in_python(said.rpartition("error: ")[2])


def _in_python(message: str) -> str:
    """A message of the engine with arguments of `run_batch` where it names flags."""
    message = message.replace("--prompt-column NAME", "template '{NAME}'")
    return re.sub(r"--([a-z][a-z-]*)", lambda flag: _ARGUMENTS.get(flag[1], flag[1].replace("-", "_")), message)


def _interrupt(process: subprocess.Popen[str]) -> None:
    """End the engine, which then keeps what it has; a notebook's interrupt reaches only us."""
    process.send_signal(signal.SIGINT)
    for _ in process.stderr or ():
        pass  # it may say so: a pipe that nobody reads would end it at once


def _outcome(exit_code: int, said: str, folder: Path, before: int) -> BatchResult:
    """What the end of the engine means; `before` is what `_written` found at its start.

    Raises:
        SettingsError: an argument cannot be used.
        BatchFailedError: the batch failed, or left no results.
    """
    if exit_code == SettingsError.exit_code:
        raise SettingsError(said)
    result = None
    if _written(folder) != before:
        result = BatchResult(folder, json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    if exit_code or result is None:
        raise BatchFailedError(said, exit_code=exit_code or 1, result=result)
    return result


def _written(folder: Path) -> int:
    """When the folder's summary was written, in ns; 0 for never."""
    summary = folder / "summary.json"
    return summary.stat().st_mtime_ns if summary.exists() else 0

"""Tracing in Langfuse: what a batch, a single question and a person at a terminal use of it.

    python -m clients.langfuse_utils replay DIR    sends the traces that runs have kept because Langfuse was not there

The rooms of it are in `clients.tracing`; a pod that runs rows imports those it needs from there.
"""

import argparse
import datetime as dt
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from clients.errors import ChatError, LLMInferenceError
from clients.events import follow
from clients.records import ChatResult, Outcome
from clients.tracing.link import TRACES, Link, Wants
from clients.tracing.settings import TraceSettings
from clients.tracing.spans import Origin, SpanWriter
from clients.tracing.tracer import NoTracer, TraceCounts, Tracer, open_tracer
from clients.tracing.wire import packed

__all__ = ["CallTrace", "NoTracer", "Origin", "TraceCounts", "TraceSettings", "Tracer", "main", "open_tracer"]


_EXAMPLES = """example:
  python -m clients.langfuse_utils replay results/prompts/state

Keys and address: LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY, LANGFUSE_BASE_URL (or LANGFUSE_HOST).
"""


class CallTrace:
    """The trace of one question. Begun before it is asked, so that afterwards Langfuse has only to take it.

    Args:
        settings: Where to.
        request: The chat completion request.
        endpoint: Base URL it goes to.
    """

    def __init__(self, settings: TraceSettings, request: dict[str, Any], endpoint: str) -> None:
        self._settings, self._request = settings, request
        self._texts: dict[str, str] = {}
        self._first_token_s: float | None = None
        now = dt.datetime.now(dt.UTC)
        self._origin = Origin(run=f"query-{now:%Y-%m-%d}", shard=0, pipeline="query_vllm", model=request["model"])
        self._result = ChatResult(
            row=0,
            id="query",
            request_hash="",
            outcome=Outcome.OK,
            attempts=1,
            started_at=now,
            endpoint=endpoint,
            trace_id=secrets.token_hex(16),
        )
        self._body = b""
        self._is_written = threading.Event()
        self._found: tuple[str | None, str] | None = None
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()
        self._started = time.perf_counter()

    def seen(self, kind: str, text: str) -> None:
        """Take note of a piece of a streamed answer, as `clients.openai_client.stream` yields it."""
        if self._first_token_s is None:
            self._first_token_s = time.perf_counter() - self._started
        self._texts[kind] = self._texts.get(kind, "") + text

    def ended(self, answer: Mapping[str, Any] | None = None, error: LLMInferenceError | None = None) -> None:
        """Take note of the end.

        Args:
            answer: The chat completion, unless it was streamed.
            error: What it ended with instead.
        """
        result = self._result
        result.latency_s = time.perf_counter() - self._started
        if answer is not None:
            _read(answer, result)
        else:
            result.content, result.reasoning = self._texts.get("content"), self._texts.get("reasoning")
            result.finish_reason = self._texts.get("finish")
        if result.finish_reason == "length":
            result.outcome, result.error_code = Outcome.TRUNCATED, "length"
        if error is not None:
            result.outcome, result.error_message = Outcome.FAILED, str(error)
            result.error_code = error.code if isinstance(error, ChatError) else "endpoint"

    def sent(self, *, deadline_s: float = 3.0) -> str:
        """Send the trace; returns a line that tells where it is, or why it is nowhere.

        Args:
            deadline_s: Seconds until this is given up.
        """
        base = self._settings.base_url
        writer = SpanWriter(self._origin, self._settings)
        payload = json.dumps(self._request).encode()
        self._body = packed(writer.request([writer.row(payload, self._result, self._first_token_s)]))
        self._is_written.set()
        self._thread.join(deadline_s)
        if self._found is None:
            return f"Trace: not sent, {base} gives no answer within {deadline_s:g} s"
        project, trouble = self._found
        if trouble:
            return f"Trace: not sent, {base}: {trouble}"
        return f"Trace: {base}/{f'project/{project}/traces' if project else 'trace'}/{self._result.trace_id}"

    def _run(self) -> None:
        link = Link(self._settings)
        project = link.project_id()
        self._is_written.wait()
        reply = link.post(TRACES, self._body, timeout_s=10.0)
        is_taken = reply.wants is Wants.NOTHING
        if project is None and is_taken:
            project = link.project_id(1.0)
        self._found = project, "" if is_taken else reply.reason
        link.close()


def _read(answer: Mapping[str, Any], result: ChatResult) -> None:
    """Put the parts of a chat completion into a record, as far as it has them."""
    try:
        choice = answer["choices"][0]
        message, usage = choice["message"], answer.get("usage") or {}
        content, tools = message.get("content"), message.get("tool_calls")
        result.content = content if content is None or isinstance(content, str) else json.dumps(content)
        result.reasoning = message.get("reasoning") or message.get("reasoning_content")
        result.tool_calls = json.dumps(tools) if tools else None
        result.finish_reason, result.model = choice.get("finish_reason"), answer.get("model")
        result.prompt_tokens, result.completion_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        result.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        result.raw_response = json.dumps(answer)
    except (KeyError, IndexError, TypeError, AttributeError):
        result.content = json.dumps(answer)


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run the command.

    Returns:
        0, 1 when traces are left or lost, 2 for settings to mend, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="python -m clients.langfuse_utils",
        description="Send the traces that Langfuse did not take.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    again = commands.add_parser("replay", help="send the traces that are kept in a folder, and remove those accepted")
    again.add_argument("folder", metavar="DIR", help="such as a run's state folder; everything below is looked through")
    again.add_argument("--time-limit", type=float, default=3600.0, metavar="SECONDS", help="default: %(default)g")
    args = parser.parse_args(argv)
    follow(_print_event)
    from clients.tracing.replay import replay  # late: a single question has nothing to do with files

    try:
        settings = TraceSettings.from_environment(os.environ if environ is None else environ)
        return replay(args.folder, settings, time_limit_s=args.time_limit)
    except LLMInferenceError as error:
        print(f"replay: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _print_event(event: dict[str, Any]) -> None:
    if reason := event.get("reason"):
        print(f"replay: {reason}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

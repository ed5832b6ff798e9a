"""Send one prompt to an OpenAI-compatible endpoint such as vLLM, and print the answer and how long it took.

Runs by its path from any folder (`python clients/query_vllm.py`) with nothing installed but the `openai` package.
"""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and not __package__:  # by path: clients/ itself must not shadow third-party modules
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(_HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != _HERE)]

from clients.endpoint import base_url
from clients.errors import EndpointError, LLMInferenceError, SettingsError

if TYPE_CHECKING:
    from clients.langfuse_utils import CallTrace

_EXAMPLES = """examples:
  python clients/query_vllm.py --url http://localhost:8000/v1 --prompt "Hello"
  python clients/query_vllm.py --url http://localhost:8000/v1 --model qwen3-30b-fp8 --prompt "안녕하세요" --stream
  python clients/query_vllm.py --url http://localhost:8000/v1 --prompt - --json < question.txt

The key comes from OPENAI_API_KEY, never from a flag. With LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY and
LANGFUSE_BASE_URL set, the call is traced.
"""

_DIM, _PLAIN = "\033[2m", "\033[0m"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; `url` and `prompt` are final, the key is not among them."""
    parser = argparse.ArgumentParser(
        prog="python clients/query_vllm.py",
        description=(__doc__ or "").partition("\n")[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", help="with or without /v1 or /v1/chat/completions; default: OPENAI_BASE_URL")
    parser.add_argument("--model", help="default: the model that the endpoint lists first")
    parser.add_argument("--prompt", required=True, help="the user message; - reads it from standard input")
    parser.add_argument("--system", help="a system message in front of it")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, thinking included")
    parser.add_argument("--temperature", type=float, metavar="T", help="default: the server's own")
    parser.add_argument("--timeout", type=_seconds, default=1200.0, metavar="SECONDS", help="default: %(default)g")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--stream", action="store_true", help="print the text as it arrives instead of JSON at the end")
    form.add_argument("--json", action="store_true", help="only JSON on standard output; the time goes to stderr")
    return parser.parse_args(argv)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, 1 for an endpoint that did not answer as it should, 2 for settings to mend, 130 after Ctrl-C, and 141 when
        the reader of the output went away.
    """
    args = parse(argv)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)
    try:
        _run(args)
    except LLMInferenceError as error:
        print(f"query_vllm: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it ends
        return 141
    return 0


def _run(args: argparse.Namespace) -> None:
    url = base_url(args.url or os.environ.get("OPENAI_BASE_URL") or _no_url())
    messages = _messages(args)
    try:
        from clients import openai_client as api  # only now, since openai takes its time
    except ImportError as error:
        raise SettingsError(f"the openai package cannot be imported ({error}): pip install openai") from error
    with api.connect(url, args.timeout) as client:
        model = args.model or _first(api.model_names(client), url)
        wanted = {"max_tokens": args.max_tokens, "temperature": args.temperature}
        request = {"model": model, "messages": messages, **{k: v for k, v in wanted.items() if v is not None}}
        trace = _trace(request, url)
        started = time.perf_counter()
        try:
            if args.stream:
                _print_stream(_seen(api.stream(client, request), trace))
                answer = None
            else:
                answer = api.ask(client, request)
                print(json.dumps(answer, ensure_ascii=False, indent=2), flush=True)
        except LLMInferenceError as error:
            if trace is not None:
                trace.ended(error=error)
                print(trace.sent(), file=sys.stderr)
            raise
        elapsed_s = time.perf_counter() - started
        if trace is not None:
            trace.ended(answer)
    out = sys.stderr if args.json else sys.stdout
    print(f"Elapsed: {elapsed_s:.2f}s", file=out, flush=True)
    if trace is not None:
        print(trace.sent(), file=out, flush=True)


def _trace(request: dict[str, Any], url: str) -> "CallTrace | None":
    """The trace of the call, when the keys of Langfuse are set; nothing of it is loaded otherwise."""
    if not (os.environ.get("LANGFUSE_PUBLIC_KEY") or os.environ.get("LANGFUSE_SECRET_KEY")):
        return None
    from clients.events import follow
    from clients.langfuse_utils import CallTrace, TraceSettings

    follow(lambda event: print(f"query_vllm: {event['reason']}; {event['then']}", file=sys.stderr))
    settings = TraceSettings.from_environment(os.environ)
    return None if settings is None else CallTrace(settings, request, url)


def _seen(pieces: Iterable[tuple[str, str]], trace: "CallTrace | None") -> Iterator[tuple[str, str]]:
    for kind, text in pieces:
        if trace is not None:
            trace.seen(kind, text)
        yield kind, text


def _no_url() -> str:
    raise SettingsError("no endpoint given: pass --url http://HOST:8000/v1 or set OPENAI_BASE_URL")


def _messages(args: argparse.Namespace) -> list[dict[str, str]]:
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    texts = {"system": args.system, "user": prompt}
    for role, text in texts.items():
        if text is not None and not text.isascii() and any("\ud800" <= mark <= "\udfff" for mark in text):
            raise SettingsError(f"the {role} message is not UTF-8 text: convert it, or pass it as --prompt - < FILE")
    if not prompt.strip():
        raise SettingsError("the prompt is empty: pass text with --prompt, or --prompt - and text on standard input")
    return [{"role": role, "content": text} for role, text in texts.items() if text]


def _first(names: list[str], url: str) -> str:
    if not names:
        raise EndpointError(f"{url}/models lists no model: pass one with --model")
    if len(names) > 1:
        print(f"query_vllm: using {names[0]}, the first of {len(names)} models; choose with --model", file=sys.stderr)
    return names[0]


def _print_stream(pieces: Iterable[tuple[str, str]]) -> None:
    """Print thinking and answer as they arrive, a blank line between them; on a terminal the thinking is dimmed."""
    dim = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    before = ""
    for kind, text in pieces:
        if kind == "finish":
            print(flush=True)
            if text == "length":
                print("query_vllm: the answer was cut off at its token limit; raise --max-tokens", file=sys.stderr)
            continue
        gap = "\n\n" if before not in {"", kind} else ""
        shown = f"{_DIM}{text}{_PLAIN}" if dim and kind == "reasoning" else text
        print(f"{gap}{shown}", end="", flush=True)
        before = kind


if __name__ == "__main__":
    sys.exit(main())

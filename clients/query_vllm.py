"""Send one prompt to an OpenAI-compatible endpoint such as vLLM, and print the answer and how long it took.

Runs by its path from any folder (`python clients/query_vllm.py`) with nothing installed but the `openai` package.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and not __package__:  # by path: clients/ itself must not shadow third-party modules
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(_HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != _HERE)]

from clients.endpoint import base_url
from clients.errors import ChatError, EndpointError, LLMInferenceError, RejectedError, SettingsError

if TYPE_CHECKING:
    import openai

_CONNECT_TIMEOUT_S = 10.0  # an address that nobody answers is known long before an answer of minutes is due
_LOOPBACK = ("localhost", "127.", "[::1]")
_DIM, _PLAIN = "\033[2m", "\033[0m"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; `url` and `prompt` are final, the key is not among them."""
    parser = argparse.ArgumentParser(prog="query_vllm", description=(__doc__ or "").partition("\n")[0])
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
    parser.epilog = "The API key comes from OPENAI_API_KEY, never from a flag."
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
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
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
    with _client(url, args.timeout) as client:
        model = args.model or _first_model(client, url)
        asked = {"max_tokens": args.max_tokens, "temperature": args.temperature}
        request = {"model": model, "messages": messages, **{k: v for k, v in asked.items() if v is not None}}
        started = time.perf_counter()
        with _translated(client, url, model):
            answer = _stream(client, url, request) if args.stream else _ask(client, url, request)
        elapsed = f"Elapsed: {time.perf_counter() - started:.2f}s"
    if answer is not None:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    print(elapsed, file=sys.stderr if args.json else sys.stdout, flush=True)
    sys.stdout.flush()


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


def _client(url: str, timeout_s: float) -> "openai.OpenAI":
    try:
        import openai  # after the flags, since it takes a second
    except ImportError as error:
        raise SettingsError(f"the openai package cannot be imported ({error}): pip install openai") from error
    key = os.environ.get("OPENAI_API_KEY", "").strip() or "EMPTY"
    if not (key.isascii() and key.isprintable()):
        raise SettingsError("OPENAI_API_KEY contains characters that no key has: set it again")
    timeout = openai.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))
    direct = url.partition("://")[2].startswith(_LOOPBACK)  # a proxy elsewhere cannot reach this machine's loopback
    http = openai.DefaultHttpxClient(timeout=timeout, trust_env=not direct)
    return openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=0, http_client=http)


def _first_model(client: "openai.OpenAI", url: str) -> str:
    with _translated(client, url, None):
        names = _model_names(client, url)
    if not names:
        raise EndpointError(f"{url}/models lists no model: pass one with --model")
    if len(names) > 1:
        print(f"query_vllm: using {names[0]}, the first of {len(names)} models; choose with --model", file=sys.stderr)
    return names[0]


def _model_names(client: "openai.OpenAI", url: str) -> list[str]:
    listed = _object(client.models.with_raw_response.list().http_response.text, f"{url}/models", "data")
    return [str(card["id"]) for card in listed["data"] if isinstance(card, dict) and "id" in card]


def _ask(client: "openai.OpenAI", url: str, request: dict[str, Any]) -> dict[str, Any]:
    answer = client.chat.completions.with_raw_response.create(**request)
    return _object(answer.http_response.text, f"{url}/chat/completions", "choices")


def _object(text: str, where: str, needed: str) -> dict[str, Any]:
    """The JSON object in `text`, which must have a list under `needed`."""
    try:
        found = json.loads(text)
    except ValueError as error:
        if text.lstrip().startswith("<"):
            raise EndpointError(f"{where} answered with a web page: is --url the model server's own address?") from error
        raise EndpointError(f"{where} answered with broken JSON ({error}): see the server's log") from error
    if not isinstance(found, dict) or not isinstance(found.get(needed), list):
        raise EndpointError(f"{where} answered JSON without a list {needed!r}: is this an OpenAI-compatible API?")
    return found


def _stream(client: "openai.OpenAI", url: str, request: dict[str, Any]) -> None:
    """Print thinking, then the answer, as they arrive."""
    dim = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    finish, thinking = None, False
    with client.chat.completions.create(stream=True, **request) as chunks:
        if "text/event-stream" not in chunks.response.headers.get("content-type", ""):
            _object(chunks.response.read().decode(errors="replace"), f"{url}/chat/completions", "choices")
            raise EndpointError(f"{url}/chat/completions does not stream: leave out --stream")
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            extra = choice.delta.model_extra or {}
            thought = extra.get("reasoning") or extra.get("reasoning_content")
            said = choice.delta.content or choice.delta.refusal
            if thought:
                thinking = True
                print(f"{_DIM}{thought}{_PLAIN}" if dim else thought, end="", flush=True)
            if said:
                print(f"\n\n{said}" if thinking else said, end="", flush=True)
                thinking = False
            finish = choice.finish_reason or finish
    print(flush=True)
    if finish is None:
        raise ChatError("incomplete", f"the stream from {url} ended before the answer did: see the server's log")
    if finish == "length":
        print("query_vllm: the answer was cut off at its token limit; raise --max-tokens", file=sys.stderr)


@contextlib.contextmanager
def _translated(client: "openai.OpenAI", url: str, model: str | None) -> Iterator[None]:
    """Turn what the openai package and its HTTP library raise into errors that say what to do."""
    import httpx
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        raise _status_error(error, client, url, model) from error
    except (openai.APIConnectionError, httpx.HTTPError) as error:
        raise _connection_error(error, client, url) from error
    except openai.APIError as error:
        raise ChatError("server_error", f"{url} broke off its answer: {error.message}; see the server's log") from error
    except ValueError as error:
        raise EndpointError(f"{url} answered with broken JSON ({error}): see the server's log") from error

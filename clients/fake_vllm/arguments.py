"""The flags of the fake server, and what they mean together."""

import argparse

from clients.fake_vllm.answers import AnswerModel
from clients.fake_vllm.batching import StepModel
from clients.fake_vllm.faults import KINDS, FaultPlan, parse_faults
from clients.fake_vllm.options import Options, parse_outage
from clients.wide_help import WideHelp

_DESCRIPTION = """A fake vLLM on this machine: continuous batching in simulated time, faults by seed, one process.
The first line on standard output is its base URL. GET /_tally tells what it counted, POST /_reset begins anew.
"""

_EXAMPLES = """examples:
  python -m clients.fake_vllm --slots 256 --step-base-ms 2
  python -m clients.fake_vllm --replicas 4 --faults all:0.02 --outage 1:5:3
  python -m clients.fake_vllm --addresses 2 --port 8000 --thinking
"""


def parser() -> argparse.ArgumentParser:
    """Every flag, in groups."""
    made = argparse.ArgumentParser(
        prog="python -m clients.fake_vllm",
        usage="python -m clients.fake_vllm [--port N] [--slots N] [--faults KIND:SHARE,…] [...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=WideHelp,
    )
    _add_server_arguments(made)
    _add_engine_arguments(made)
    _add_answer_arguments(made)
    _add_trouble_arguments(made)
    return made


def _add_server_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="in 127.0.0.0/8 (default: %(default)s)")
    group.add_argument("--port", metavar="N", type=int, default=0, help="0 takes a free one (default)")
    group.add_argument("--model", metavar="NAME", default="fake", help="served name (default: %(default)s)")
    group.add_argument(
        "--max-model-len",
        metavar="TOKENS",
        type=int,
        default=131_072,
        help="most tokens of prompt and answer together (default: %(default)s)",
    )
    group.add_argument("--api-key", metavar="KEY", help="asked of every request to /v1")
    group.add_argument(
        "--keep-alive-s",
        metavar="S",
        type=float,
        default=5.0,
        help="idle connections close then (default: %(default)s)",
    )
    group.add_argument("--no-metrics", action="store_true", help="/metrics is 404")
    group.add_argument(
        "--anonymous",
        action="store_true",
        help="/metrics does not tell one process from another",
    )
    many = group.add_mutually_exclusive_group()
    many.add_argument("--replicas", metavar="N", type=int, default=1, help="so many behind one port, one a connection")
    many.add_argument("--addresses", metavar="N", type=int, help="so many, each with its own address and the same port")


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--slots", metavar="N", type=int, default=256, help="most running requests of a replica (default: %(default)s)"
    )
    group.add_argument(
        "--step-base-ms", metavar="MS", type=float, default=10.0, help="one decode step (default: %(default)s)"
    )
    group.add_argument(
        "--step-per-request-us",
        metavar="US",
        type=float,
        default=5.0,
        help="added to a step by each running request (default: %(default)s)",
    )
    group.add_argument(
        "--knee",
        metavar="N",
        type=int,
        default=0,
        help="beyond N running, throughput grows no more (default: no such N)",
    )
    group.add_argument(
        "--prefill-ms",
        metavar="MS",
        type=float,
        default=0.0,
        help="each start holds up its replica (default: %(default)s)",
    )
    group.add_argument("--instant", action="store_true", help="no engine: every answer comes at once")


def _add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers")
    group.add_argument("--seed", metavar="N", type=int, default=0, help="of lengths, faults and replicas (default: 0)")
    group.add_argument(
        "--tokens-median", metavar="N", type=float, default=200.0, help="of an answer (default: %(default)s)"
    )
    group.add_argument(
        "--tokens-sigma", metavar="X", type=float, default=0.8, help="spread of the logarithm (default: %(default)s)"
    )
    group.add_argument(
        "--tokens-max", metavar="N", type=int, default=4000, help="longest answer (default: %(default)s)"
    )
    group.add_argument(
        "--answer-bytes", metavar="N", type=int, default=200, help="length of the text (default: %(default)s)"
    )
    group.add_argument("--thinking", action="store_true", help="70 %% of the tokens are thoughts, which come first")


def _add_trouble_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("trouble")
    group.add_argument("--max-queued", metavar="N", type=int, help="503 when more than N would wait in a replica")
    group.add_argument("--gateway-queue", metavar="N", type=int, help="429 when more than N would wait in all")
    group.add_argument(
        "--retry-after", metavar="S", type=float, default=1.0, help="what that 429 asks for (default: %(default)s)"
    )
    group.add_argument("--closed-s", metavar="S", type=float, default=0.0, help="the port opens after S seconds")
    group.add_argument(
        "--not-ready-s", metavar="S", type=float, default=0.0, help="/health and chat are 503 for S seconds"
    )
    group.add_argument(
        "--outage",
        metavar="R:START:SECONDS",
        action="append",
        default=[],
        help="replica R is dead for SECONDS, START seconds after the first request; repeatable",
    )
    group.add_argument(
        "--faults", metavar="KIND:SHARE,…", default="", help="by chance; all:SHARE gives every kind that share"
    )
    group.add_argument(
        "--fault-attempts",
        metavar="K",
        type=int,
        default=2,
        help="only the first K requests for a text can meet one (default: %(default)s)",
    )
    group.add_argument("--list-faults", action="version", version=_kinds(), help="print each KIND and what it does")


def _kinds() -> str:
    return "\n".join(f"{kind:<12}{what}" for kind, what in KINDS.items())


def server_options(options: argparse.Namespace) -> Options:
    """What the server is like.

    Raises:
        SettingsError: a flag that cannot be.
    """
    steps = StepModel(
        base_s=options.step_base_ms / 1e3, per_running_s=options.step_per_request_us / 1e6, knee=options.knee
    )
    return Options(
        host=options.host,
        port=options.port,
        model=options.model,
        max_model_len=options.max_model_len,
        api_key=options.api_key,
        seed=options.seed,
        replicas=options.addresses or options.replicas,
        own_addresses=options.addresses is not None,
        slots=options.slots,
        steps=steps,
        prefill_s=options.prefill_ms / 1e3,
        instant=options.instant,
        max_queued=options.max_queued,
        gateway_queue=options.gateway_queue,
        retry_after_s=options.retry_after,
        keep_alive_s=options.keep_alive_s,
        closed_s=options.closed_s,
        not_ready_s=options.not_ready_s,
        metrics=not options.no_metrics,
        anonymous=options.anonymous,
        outages=tuple(parse_outage(text) for text in options.outage),
    )


def answer_model(options: argparse.Namespace) -> AnswerModel:
    """What it says."""
    return AnswerModel(
        seed=options.seed,
        median=options.tokens_median,
        sigma=options.tokens_sigma,
        longest=options.tokens_max,
        text_bytes=options.answer_bytes,
        thinking=options.thinking,
    )


def fault_plan(options: argparse.Namespace) -> FaultPlan:
    """What goes wrong.

    Raises:
        SettingsError: a flag that cannot be.
    """
    return FaultPlan(options.seed, parse_faults(options.faults), options.fault_attempts)

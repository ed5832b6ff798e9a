"""Starts the fake vLLM; see `--help`."""

import asyncio
import functools
import gc
import signal
import sys
from collections.abc import Callable

from clients.errors import LLMInferenceError, SettingsError
from clients.fake_vllm.answers import AnswerModel
from clients.fake_vllm.arguments import answer_model, fault_plan, parser, server_options
from clients.fake_vllm.cluster import Cluster
from clients.fake_vllm.faults import FaultPlan
from clients.fake_vllm.options import Options
from clients.fake_vllm.server import Connection


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code, 130 or 143."""
    flags = parser()
    given = flags.parse_args(arguments)
    try:
        options, answers, faults = server_options(given), answer_model(given), fault_plan(given)
    except SettingsError as error:
        flags.error(str(error))
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve_until_told(options, answers, faults))
    except LLMInferenceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


async def _serve_until_told(options: Options, answers: AnswerModel, faults: FaultPlan) -> int:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()

    def tell(number: int) -> None:
        if not told.done():
            told.set_result(number)

    for wanted in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(wanted, tell, wanted)
    cluster = Cluster(options, answers, faults)
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(cluster.serve(functools.partial(Connection, cluster), _announce))
        number = await told
        cluster.close()
        serving.cancel()
    return 128 + number


def _announce(urls: list[str]) -> None:
    print(urls[0], flush=True)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # slower, but right
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


if __name__ == "__main__":
    sys.exit(main())

"""A row that ends the server which works on it: it costs a few restarts, and no other row anything."""

import asyncio
import concurrent.futures
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from aiohttp import web

from tests.servers.openai_server import Fault, OpenAIServer, SeenRequest, error_reply

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

#: Seconds that the server is gone when it has died.
GONE_S = 0.3


class MortalServer(OpenAIServer):
    """Dies with every connection when a deadly row has been worked on for a while, and is back a moment later.

    Attributes:
        deaths: How often it died.
        last_words_s: Seconds for which it answers everything with 500 before it dies, as vLLM does.
    """

    deaths = 0
    last_words_s = 0.0

    def dies_of(self, word: str) -> None:
        """Let it die of rows with a word in them."""
        self._ending: set[asyncio.Task[None]] = set()
        self._engine_died = asyncio.Event()

        def fault(request: SeenRequest) -> None:
            if word in request.text:
                after_s = float(request.text.rpartition(" after ")[2]) if " after " in request.text else 0.05
                task = asyncio.get_running_loop().create_task(self._die(after_s))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

        self.faults = fault

    async def _die(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if self._runner is None or self._engine_died.is_set():
            return
        self.deaths += 1
        if self.last_words_s:
            self._engine_died.set()
            await asyncio.sleep(self.last_words_s)
        await self.stop()
        await asyncio.sleep(GONE_S)
        self._engine_died.clear()
        await self.start()

    async def _generate(self, request: web.Request, record: SeenRequest, fault: Fault | None) -> web.StreamResponse:
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(super()._generate(request, record, fault))
            death = group.create_task(self._engine_died.wait())
            await asyncio.wait([answer, death], return_when=asyncio.FIRST_COMPLETED)
            answer.cancel()
            death.cancel()
        if answer.cancelled():
            return error_reply(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")
        return answer.result()


@pytest.fixture
def server() -> Iterator[MortalServer]:
    mortal = MortalServer(latency_s=0.2, output_tokens=(4, 4), slots=16)
    mortal.dies_of("poison")
    with mortal.in_thread():
        yield mortal


def run(folder: Path, url: str, rows: list[str]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    folder.mkdir(exist_ok=True)
    (folder / "p.jsonl").write_text("".join(f"{json.dumps({'prompt': row})}\n" for row in rows), encoding="utf-8")
    command = [sys.executable, "-m", "clients.batch", "--prompts", str(folder / "p.jsonl"), "--url", url]
    command += ["--output", str(folder / "out"), "--max-error-rate", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return pd.read_parquet(folder / "out/results.parquet"), events


@pytest.mark.parametrize("last_words_s", [0.0, 0.3])
@pytest.mark.parametrize("at", [0, 79])
def test_all_rows_but_the_deadly_one_are_answered(
    server: MortalServer, tmp_path: Path, at: int, last_words_s: float
) -> None:
    server.last_words_s = last_words_s
    rows = [f"row {number}" for number in range(80)]
    rows[at] = "poison"
    frame, events = run(tmp_path, server.url, rows)
    assert frame["outcome"].value_counts().to_dict() == {"ok": 79, "failed": 1}
    deadly = frame.loc[at]
    assert deadly["outcome"] == "failed"
    assert "times while it worked on this row" in deadly["error_message"]
    # Four to seven; it was 14 when every row had eight failures for nothing and six attempts.
    assert server.deaths <= 8
    assert at in [event["row"] for event in events if event["event"] == "row.set_aside"]


def test_two_deadly_rows_are_both_found(server: MortalServer, tmp_path: Path) -> None:
    rows = [f"row {number}" for number in range(60)]
    rows[3] = rows[40] = "poison"
    rows[40] += " of another kind"
    frame, _ = run(tmp_path, server.url, rows)
    assert frame["outcome"].value_counts().to_dict() == {"ok": 58, "failed": 2}
    assert frame.loc[[3, 40], "outcome"].tolist() == ["failed", "failed"]
    assert server.deaths <= 12


def test_another_client_s_deadly_row_costs_no_row_of_this_one(server: MortalServer, tmp_path: Path) -> None:
    server.latency_s = 1.5
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        innocent = pool.submit(run, tmp_path / "innocent", server.url, [f"row {number}" for number in range(4)])
        deadly = pool.submit(run, tmp_path / "deadly", server.url, ["poison after 1"])
    assert deadly.result()[0]["outcome"].tolist() == ["failed"]
    assert innocent.result()[0]["outcome"].unique().tolist() == ["ok"]
    assert server.deaths <= 10

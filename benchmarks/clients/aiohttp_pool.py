"""What a specialist writes: aiohttp, orjson and uvloop, a pool of workers, retries by hand, answers written at once."""

import argparse
import asyncio
import random
from typing import Any

import aiohttp
import orjson
import uvloop

from benchmarks.clients.flags import parse, read_prompts

_WORTH_ANOTHER_TRY = frozenset({408, 409, 429, 500, 502, 503, 504})
_HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer none"}
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 8.0


async def main(options: argparse.Namespace) -> None:
    """Answer every prompt."""
    prompts = read_prompts(options.prompts)
    url = options.url.rstrip("/") + "/chat/completions"
    timeout = aiohttp.ClientTimeout(total=options.timeout)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=_HEADERS) as session:
        with options.output.open("wb") as out:

            async def work() -> None:
                for row, prompt in prompts:
                    body = orjson.dumps({"model": options.model, "messages": [{"role": "user", "content": prompt}]})
                    answer = await _answer(session, url, body, options.attempts)
                    out.write(orjson.dumps({"row": row, **answer}, option=orjson.OPT_APPEND_NEWLINE))

            async with asyncio.TaskGroup() as group:
                for _ in range(options.concurrency):
                    group.create_task(work())


async def _answer(session: aiohttp.ClientSession, url: str, body: bytes, attempts: int) -> dict[str, Any]:
    """Ask until there is an answer, or it makes no sense, or it was enough."""
    found = ""
    for attempt in range(attempts):
        wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt) * random.uniform(0.75, 1.0)  # noqa: S311 - jitter
        try:
            async with session.post(url, data=body) as response:
                raw = await response.read()
                if response.status == 200:
                    answer = orjson.loads(raw)
                    return {"content": answer["choices"][0]["message"]["content"], "usage": answer["usage"]}
                found = f"HTTP {response.status}"
                if response.status not in _WORTH_ANOTHER_TRY:
                    break
                wait_s = max(wait_s, float(response.headers.get("Retry-After", 0)))
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError) as error:
            found = repr(error)
        if attempt + 1 < attempts:
            await asyncio.sleep(wait_s)
    return {"error": found}


if __name__ == "__main__":
    uvloop.run(main(parse(__doc__)))

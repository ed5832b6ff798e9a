"""What a careful user writes: AsyncOpenAI, a pool of workers, and each answer written when it comes."""

import argparse
import asyncio
import json
from typing import Any

import openai

from benchmarks.clients.flags import parse, read_prompts


async def main(options: argparse.Namespace) -> None:
    """Answer every prompt."""
    client = openai.AsyncOpenAI(
        base_url=options.url, api_key="none", timeout=options.timeout, max_retries=options.attempts - 1
    )
    prompts = read_prompts(options.prompts)
    with options.output.open("w", encoding="utf-8") as out:

        async def work() -> None:
            for row, prompt in prompts:
                out.write(json.dumps(await _answer(client, options.model, row, prompt), ensure_ascii=False) + "\n")

        async with asyncio.TaskGroup() as group:
            for _ in range(options.concurrency):
                group.create_task(work())


async def _answer(client: openai.AsyncOpenAI, model: str, row: int, prompt: str) -> dict[str, Any]:
    try:
        got = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
        return {"row": row, "content": got.choices[0].message.content, "usage": got.usage and got.usage.to_dict()}
    except (openai.OpenAIError, ValueError, LookupError, TypeError) as error:
        return {"row": row, "error": repr(error)}


if __name__ == "__main__":
    asyncio.run(main(parse(__doc__)))

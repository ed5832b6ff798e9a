"""What a user writes: AsyncOpenAI, a semaphore, gather over all rows, and the answers written at the end."""

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
    gate = asyncio.Semaphore(options.concurrency)

    async def answer(row: int, prompt: str) -> dict[str, Any]:
        async with gate:
            try:
                got = await client.chat.completions.create(
                    model=options.model, messages=[{"role": "user", "content": prompt}]
                )
                return {
                    "row": row,
                    "content": got.choices[0].message.content,
                    "usage": got.usage and got.usage.to_dict(),
                }
            except (openai.OpenAIError, ValueError, LookupError, TypeError) as error:
                return {"row": row, "error": repr(error)}

    answers = await asyncio.gather(*(answer(row, prompt) for row, prompt in read_prompts(options.prompts)))
    with options.output.open("w", encoding="utf-8") as out:
        for line in answers:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    asyncio.run(main(parse(__doc__)))

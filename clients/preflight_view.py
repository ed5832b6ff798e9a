"""What `--dry-run` tells before anything is sent: what is in the input, whether it fits, how long it will take."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from clients.errors import LLMInferenceError
from clients.models import max_model_len, resolve_all
from clients.prompts.check import Checked, check_prompts
from clients.prompts.preflight import Rate, Tokens
from clients.prompts.rows import JobDefaults
from clients.results import format as fmt


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would be asked to do.

    Attributes:
        prompts: The input.
        defaults: What its rows share.
        url: The endpoint, or several; "" asks none.
        model: Wanted model; "" takes what the endpoint lists.
        api_key: The endpoint's key.
        earlier: Folders in which an earlier run's summary.json may tell how fast it goes; the first one counts.
        gpus: How many serve the model; 0 when that is not told.
        join_duplicates: Whether equal rows are sent once.
    """

    prompts: Path
    defaults: JobDefaults
    url: str
    model: str
    api_key: str | None
    earlier: tuple[Path, ...]
    gpus: int
    join_duplicates: bool


def print_preflight(plan: DryRun, console: Console | None = None) -> None:
    """Check the input, ask the endpoint for its limit, and print what a run would do; nothing is sent or written.

    Raises:
        PromptsError: the input cannot be used, or holds no row that can be sent.
    """
    console = console or Console(highlight=False)
    checked = check_prompts(str(plan.prompts), plan.defaults)
    to_send = checked.rows - checked.invalid - (checked.duplicates if plan.join_duplicates else 0)
    console.print(Text(f"{fmt.counted(checked.rows, 'row')} in {plan.prompts}, {fmt.count(to_send)} to send"))
    for line in _noteworthy(checked, plan):
        console.print(Text(f"  {line}"), soft_wrap=True)
    console.print()
    for what, text in (
        ("Prompts", _prompts(checked.tokens, checked.rows - checked.invalid)),
        ("Answers", _answers(checked.tokens, checked.rows - checked.invalid)),
        ("Model", _model(checked.tokens, plan)),
        ("Time", _time(to_send, plan)),
    ):
        console.print(Text(f"{what:<10}{text}"), soft_wrap=True)
    console.print()
    console.print("Nothing was sent. The same command without --dry-run sends it.", soft_wrap=True)


def _noteworthy(checked: Checked, plan: DryRun) -> list[str]:
    found = []
    if checked.invalid:
        found.append(f"{fmt.count(checked.invalid)} malformed, which are not sent:")
        found += [f"  {example.error_message}" for example in checked.examples]
        if checked.invalid > len(checked.examples):
            found.append("  …")
    if checked.duplicates:
        what = "get that row's answer" if plan.join_duplicates else "are sent all the same"
        found.append(f"{fmt.count(checked.duplicates)} asking the same as an earlier row, which {what}")
    if checked.repeated_ids:
        found.append(f"{fmt.count(checked.repeated_ids)} with the id of an earlier row; `row` tells them apart")
    return found


def _prompts(tokens: Tokens, rows: int) -> str:
    return (
        f"about {fmt.counted(tokens.prompt, 'token')}, {fmt.count(tokens.prompt / rows)} a row; "
        f"the longest about {fmt.count(tokens.longest)}, on {tokens.longest_at}"
    )


def _answers(tokens: Tokens, rows: int) -> str:
    if not tokens.limited:
        return "no max_tokens: each may be as long as the model lets it be"
    of = f" in {fmt.counted(tokens.limited, 'row')}; the others have no max_tokens" if tokens.limited < rows else ""
    return f"at most {fmt.counted(tokens.max_tokens, 'token')}{of}"


def _model(tokens: Tokens, plan: DryRun) -> str:
    if not plan.url:
        return "not asked: no --url"
    try:
        found = resolve_all(plan.url, model=plan.model, api_key=plan.api_key, patience_s=0)
        limit = max_model_len(found.base_url.split()[0], model=found.model, api_key=plan.api_key)
    except LLMInferenceError as error:
        return str(error)
    where = f"{found.model} at {found.base_url.replace(' ', ', ')}"
    if limit is None:
        return f"{where}; it does not say how many tokens it takes"
    beyond = tokens.beyond(limit)
    rows = f"about {fmt.counted(beyond, 'row')} may need more" if beyond else "no row needs more"
    return f"{where} takes {fmt.count(limit)} tokens, prompt and answer together; {rows}"


def _time(rows: int, plan: DryRun) -> str:
    for folder in plan.earlier:
        if (rate := _rate(folder / "summary.json")) is not None:
            seconds = rate.seconds(rows)
            gpus = f", {fmt.significant(seconds * plan.gpus / 3600)} GPU hours" if plan.gpus else ""
            return (
                f"about {fmt.duration(seconds)}{gpus}, at {fmt.rate(rate.output_tokens_per_s, 'tokens')} and "
                f"{fmt.count(rate.tokens_per_row)} tokens an answer as in {folder}"
            )
    return "not known: no earlier run to tell by. Run some of the rows first, and name its folder with --lengths-from"


def _rate(summary: Path) -> Rate | None:
    try:
        found: Any = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Rate.from_summary(found)

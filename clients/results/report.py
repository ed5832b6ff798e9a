"""The summary as one self-contained HTML page: no script, no network, readable in a sandboxed frame and on a phone."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from clients.records import Outcome
from clients.results.advice import ADVICE
from clients.results.changes import compared_with, comparison_lines, worse_fact
from clients.results.charts import histogram_chart, latency_text, throughput_chart
from clients.results.distribution import Spread
from clients.results.format import compact, count, counted, duration, moment, rate, seconds, share
from clients.results.gpus import gpu_fact
from clients.results.page import empty, escape, page, section, stats, table
from clients.results.summary import Summary
from clients.results.traces import trace_fact

#: Okabe and Ito's colours, made for every kind of colour vision, with a grey and a violet; the word stands beside each.
_COLOURS = ("0072b2", "56b4e9", "009e73", "cc79a7", "f0e442", "999999", "e69f00", "d55e00", "6b4a9e")
_MAX_SETTINGS = 100
_MAX_VALUE = 600


def render_report(summary: Summary, *, title: str) -> str:
    """The page: one HTML document that loads nothing and runs nothing, below 150 kB.

    Args:
        summary: Of `SummaryCollector.summary`, or read back from summary.json. Nothing in it is trusted.
        title: Headline and window title.
    """
    answers = (
        (_outcomes, _comparison, _latency, _output_length, _throughput, _not_ok, _slowest)
        if summary["rows"]
        else (_no_rows,)
    )
    body = "\n".join([_headline(summary, title), *(part(summary) for part in (*answers, _settings)), _FOOTER])
    return page(title, body)


_FOOTER = (
    '<footer class="small soft"><p><code>results.parquet</code> beside this page has one line per input row, in input '
    "order: <code>content</code> is the answer, <code>reasoning</code> the thinking before it, <code>outcome</code> "
    "how the row ended, <code>latency_s</code> the seconds of its last attempt; your own columns follow. "
    "<code>rejects.parquet</code> repeats the rows that are not ok, <code>summary.json</code> the numbers shown "
    "here.</p></footer>"
)


def _headline(summary: Summary, title: str) -> str:
    rows, ok = summary["rows"], summary["outcomes"].get(Outcome.OK, 0)
    models = ", ".join(list(summary["models"])[:3])
    when = " to ".join(dict.fromkeys(moment(summary[key]) for key in ("started_at", "finished_at") if summary[key]))
    left = rows - ok
    tiles = (
        (count(rows), "row" if rows == 1 else "rows"),
        (share(ok, rows), f"ok, {count(left)} not" if left else "ok"),
        (
            duration(summary["duration_s"]),
            f"active time, {rate(summary['rows_per_s'], 'rows')}" if summary["rows_per_s"] else "active time",
        ),
        (_tokens_per_s(summary), "output tokens/s"),
    )
    shown = "".join(f"<div><b>{escape(number)}</b><span>{escape(label)}</span></div>" for number, label in tiles)
    facts = [f"{count(summary['prompt_tokens'])} prompt tokens", f"{count(summary['completion_tokens'])} output tokens"]
    if summary["completion_tokens_per_row"] is None:
        facts = ["no token counts reported"]
    if summary["cached_tokens"]:
        facts.append(f"{share(summary['cached_tokens'], summary['prompt_tokens'])} of the prompt from cache")
    facts.append(f"{count(summary['retries'])} retries")
    if summary["joined"]:
        facts.append(f"{counted(summary['joined'], 'row')} answered together with an identical one")
    facts += [gpu_fact(summary), trace_fact(summary)]
    notes = [f"Stopped early: {summary['stopped_early']}."] if summary["stopped_early"] else []
    notes += [summary["verdict"]["advice"]] if summary["verdict"] else []
    return (
        f'<header><h1>{escape(title)}</h1><p class="soft">{_line(models, when)}</p></header>'
        f'<div class="tiles">{shown}</div><p class="small soft">{_line(*facts)}</p>'
        f'<p class="small soft">{escape(" ".join(notes))}</p>'
    )


def _line(*facts: str) -> str:
    return " · ".join(f'<span class="fact">{escape(fact)}</span>' for fact in facts if fact)


def _tokens_per_s(summary: Summary) -> str:
    per_s = summary["output_tokens_per_s"]
    return count(per_s) if per_s is None or 100 <= per_s < 1e6 else compact(per_s)


def _no_rows(_: Summary) -> str:
    return section("Outcomes", empty("The input has no rows."))


def _outcomes(summary: Summary) -> str:
    rows = summary["rows"]
    colours: dict[str, str] = dict(zip(ADVICE, _COLOURS, strict=True))
    advice = {word.value: text for word, text in ADVICE.items()}
    happened = [(word, number) for word, number in summary["outcomes"].items() if number]
    bar, lines = "", []
    for word, number in happened:
        paint = f"background:#{colours.get(word, '999999')}"
        tip = f"{word}: {count(number)} rows, {share(number, rows)}"
        bar += f'<i style="{paint};flex:{number / rows:.6f}" title="{escape(tip)}"></i>'
        name = f'<span class="word"><span class="dot" style="{paint}"></span>{escape(word)}</span>'
        lines.append((name, count(number), share(number, rows), escape(advice.get(word, ""))))
    body = table("advice", ("outcome", "#rows", "#share", "what it means"), lines)
    absent = ", ".join(word for word, number in summary["outcomes"].items() if not number)
    rest = f'<p class="small soft">None: {escape(absent)}.</p>' if absent else ""
    return section("Outcomes", f'<div class="stack">{bar}</div>{body}<p></p>{rest}')


def _comparison(summary: Summary) -> str:
    """Nothing at all for a first run: there is nothing to say about it."""
    found = summary.get("comparison")
    if not found:
        return ""
    lines = [
        (
            escape(line.title),
            escape(line.before),
            escape(line.now),
            f'<span class="worse">{escape(line.change)}</span>' if line.worse else escape(line.change),
        )
        for line in comparison_lines(found)
    ]
    stops = "".join(
        f'<p class="stop">{escape(_clip(sentence))}</p>' for sentence in found["regressions"][:_MAX_SETTINGS]
    )
    which = f" ({found['run']})" if found["run"] else ""
    note = f"{_sentence(compared_with(found))}{which} is the last of this job that passed. {worse_fact(found)}"
    return section(
        "Compared with the run before", stops + table("beside", ("", "#before", "#now", "#change"), lines), note
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _latency(summary: Summary) -> str:
    histogram, spread = summary["latency_histogram"], summary["latency_s"]
    if histogram is None or spread is None:
        return section("Latency", empty("No row was answered, so there is no latency to show."))
    if len(histogram["counts"]) == 1:
        return section("Latency", empty(f"{seconds(spread['max'])} for {_answered(spread)}."))
    chart = histogram_chart(histogram, spread, describe="Distribution of latency", show=latency_text)
    note = f"Rows by seconds from sending a request to its last byte; last attempts of {_answered(spread)}."
    return section("Latency", chart + stats({name: seconds(value) for name, value in _numbers(spread)}), note)


def _output_length(summary: Summary) -> str:
    histogram, spread = summary["completion_tokens_histogram"], summary["completion_tokens_per_row"]
    if histogram is None or spread is None:
        why = "The server reported no token counts." if summary["answered"] else "No row was answered."
        return section("Output length", empty(why))
    if len(histogram["counts"]) == 1:
        return section("Output length", empty(f"{count(spread['max'])} tokens for {_answered(spread)}."))
    chart = histogram_chart(histogram, spread, describe="Distribution of output length", show=compact)
    note = f"Rows by output tokens, thinking included; {_answered(spread)}."
    return section("Output length", chart + stats({name: count(value) for name, value in _numbers(spread)}), note)


def _answered(spread: Spread) -> str:
    return "the only answered row" if spread["count"] == 1 else f"{count(spread['count'])} answered rows"


def _numbers(spread: Spread) -> list[tuple[str, float]]:
    names = {"median": spread["p50"], "p90": spread["p90"], "p95": spread["p95"], "p99": spread["p99"]}
    return [*names.items(), ("max", spread["max"]), ("mean", spread["mean"])]


def _throughput(summary: Summary) -> str:
    throughput = summary["throughput"]
    if not summary["duration_s"]:
        return section("Throughput", empty("No request took any time."))
    body = throughput_chart(throughput, throughput["rows"], unit="rows")
    if any(throughput["output_tokens"]):
        body = throughput_chart(throughput, throughput["output_tokens"], unit="output tokens") + body
    note = "What finished when, over active time: gaps of more than a minute without any request are left out."
    return section("Throughput", body, note)


def _not_ok(summary: Summary) -> str:
    total = summary["rows"] - summary["outcomes"].get(Outcome.OK, 0)
    if not total:
        return section("Rows that are not ok", empty("None: every row is ok."))
    names = ("#row", "id", "outcome", "reason and trace", "#attempts")
    lines = [
        (count(row["row"]), _id(row), _word(row), _reason(row, summary), count(row["attempts"]))
        for row in summary["not_ok"]
    ]
    codes = ", ".join(f"{code} {count(number)}" for code, number in list(summary["error_codes"].items())[:12])
    few = f"{count(len(lines))} of {count(total)}, the first of each outcome. " if total > len(lines) else ""
    note = few + (f"Error codes: {codes}." if codes else "")
    return section("Rows that are not ok", table("rows", names, lines), note)


def _slowest(summary: Summary) -> str:
    if not summary["slowest"]:
        return section("Slowest rows", empty("No request was sent."))
    traced = any(row["trace_id"] for row in summary["slowest"])
    names = ("#latency", "#output tokens", "#row", "id", "outcome", *(("trace",) if traced else ()))
    lines = [
        (
            seconds(row["latency_s"]),
            count(row["completion_tokens"]),
            count(row["row"]),
            _id(row),
            _word(row),
            *((_trace(row, summary),) if traced else ()),
        )
        for row in summary["slowest"]
    ]
    return section("Slowest rows", table("rows", names, lines))


def _id(row: Mapping[str, Any]) -> str:
    return f"<code>{escape(row['id'])}</code>"


def _trace(row: Mapping[str, Any], summary: Summary) -> str:
    if not row["trace_id"]:
        return ""
    shown = f'<code class="soft">{escape(row["trace_id"])}</code>'
    url = str(summary.get("trace_url") or "")
    if not url.startswith(("http://", "https://")):  # a summary that was read back may say anything
        return shown
    address = escape(url.replace("{trace_id}", quote(row["trace_id"], safe="")))
    return f'<a href="{address}" target="_blank" rel="noreferrer">{shown}</a>'


def _word(row: Mapping[str, Any]) -> str:
    return f'<span class="word">{escape(row["outcome"])}</span>'


def _reason(row: Mapping[str, Any], summary: Summary) -> str:
    code = f"<code>{escape(row['error_code'])}</code> " if row["error_code"] else ""
    trace = f"<br>{_trace(row, summary)}" if row["trace_id"] else ""
    return f"<div>{code}{escape(row['error_message'] or '')}{trace}</div>".replace("<div><br>", "<div>")


def _settings(summary: Summary) -> str:
    pairs = list(summary["settings"].items())
    pairs += [("endpoints asked", ", ".join(f"{url} ({count(n)})" for url, n in summary["endpoints"].items()))]
    shown = [(name, value) for name, value in pairs if value not in (None, "", {}, [])]
    lines = "".join(
        f"<dt>{escape(_clip(name))}</dt><dd><code>{escape(_clip(value))}</code></dd>"
        for name, value in shown[:_MAX_SETTINGS]
    )
    return section("Settings", f'<dl class="pairs">{lines}</dl>' if shown else empty("None given."))


def _clip(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"

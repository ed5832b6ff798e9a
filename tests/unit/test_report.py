import datetime as dt
import html.parser
import json
import random
import re
from typing import Any

import pyarrow as pa
import pytest

from clients.records import Outcome
from clients.results.comparison import compare, numbers_of
from clients.results.markdown import render_markdown
from clients.results.report import ADVICE, render_report
from clients.results.schema import COLUMNS
from clients.results.summary import ANSWERED, Summary, SummaryCollector

START = dt.datetime(2026, 3, 14, 1, 2, 3, tzinfo=dt.UTC)
VOID = {"meta", "br"}
HARMLESS = {
    "html",
    "head",
    "title",
    "style",
    "body",
    "main",
    "header",
    "footer",
    "section",
    "h1",
    "h2",
    "h3",
    "p",
    "div",
}
HARMLESS |= {"span", "b", "i", "br", "meta", "table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd", "code"}
HARMLESS |= {"svg", "line", "text", "rect"}
ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&lt;"


class Page(html.parser.HTMLParser):
    """Reads a page as a browser would: tags, attributes and text; fails on tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


def run(count: int, outcomes: dict[int, Outcome] | None = None, **more: Any) -> list[dict[str, Any]]:
    """Rows as a run leaves them: lognormal lengths, latency in proportion, a few requests at a time."""
    draw = random.Random(count)
    rows = []
    for number in range(count):
        outcome = (outcomes or {}).get(number, Outcome.OK)
        tokens = int(draw.lognormvariate(6, 0.7)) + 1
        found: dict[str, Any] = {"row": number, "id": f"행-{number}", "request_hash": "", "outcome": outcome}
        found["attempts"] = 0 if outcome is Outcome.INVALID else 1
        if outcome is not Outcome.INVALID:
            started = START + dt.timedelta(seconds=number / 5)
            found |= {
                "started_at": started,
                "latency_s": 0.3 + tokens / 50,
                "model": "qwen3",
                "endpoint": "http://v/v1",
            }
            found["trace_id"] = f"{number:032x}"
        if outcome in ANSWERED:
            found |= {"prompt_tokens": 50, "completion_tokens": tokens, "cached_tokens": 16}
        else:
            found |= {"error_code": "http_400", "error_message": f"row {number} cannot work"}
        rows.append(found | more)
    return rows


def summarise(rows: list[dict[str, Any]], **given: Any) -> Summary:
    collector = SummaryCollector()
    collector.add(pa.RecordBatch.from_pylist(rows, schema=COLUMNS))
    return collector.summary(settings=given)


def assert_inert(page: str) -> Page:
    """Nothing on the page runs, loads or leads anywhere."""
    read = Page(page)
    assert read.tags <= HARMLESS
    names = {name for name, _ in read.attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"href", "src", "srcset", "action", "formaction", "data", "xlink:href", "background", "srcdoc"}
    styles = [*re.findall(r"<style>(.*?)</style>", page, re.DOTALL), *(v for n, v in read.attributes if n == "style")]
    assert not [style for style in styles if re.search(r"url\(|@import|expression|//", style)]
    assert len(page.encode()) < 150_000
    return read


def test_a_thousand_rows_make_a_page_with_every_section() -> None:
    outcomes = {3: Outcome.INVALID, 9: Outcome.REJECTED, 11: Outcome.FAILED, 70: Outcome.TRUNCATED}
    read = assert_inert(render_report(summarise(run(1000, outcomes), max_tokens=2048), title="야간 배치"))
    for expected in (
        "야간 배치",
        "1,000",
        "99.60 %",
        "ok, 4 not",
        "Outcomes",
        "Latency",
        "Output length",
        "Throughput",
    ):
        assert expected in read.text
    for expected in ("Rows that are not ok", "Slowest rows", "Settings", "max_tokens", "2048", "results.parquet"):
        assert expected in read.text
    for word in set(outcomes.values()):
        assert ADVICE[word] in read.text


def test_the_same_summary_read_back_from_json_makes_the_same_page() -> None:
    summary = summarise(run(50), max_tokens=8)
    assert render_report(json.loads(json.dumps(summary)), title="t") == render_report(summary, title="t")


def test_nothing_a_row_or_a_setting_says_becomes_markup() -> None:
    words = dict.fromkeys(("id", "error_code", "error_message", "model", "endpoint", "trace_id"), ATTACK)
    rows = [one | words for one in run(30, dict.fromkeys(range(5), Outcome.FAILED))]
    summary = summarise(rows, **{ATTACK: ATTACK, "nested": {ATTACK: [ATTACK]}})
    summary["outcomes"][ATTACK] = 3
    read = assert_inert(render_report(summary, title=ATTACK))
    assert "script" not in read.tags
    assert read.text.count(ATTACK) > 30


def test_rows_lead_to_their_traces() -> None:
    summary = summarise(run(30, {3: Outcome.FAILED}))
    summary["traces"] = {"exported": 27, "spooled": 2, "dropped": 1, "sampled_out": 5, "replayed": 0}
    summary["trace_url"] = "https://langfuse.example/project/p?a=1&b=2/traces/{trace_id}"
    page = Page(render_report(summary, title="t"))
    links = {value for name, value in page.attributes if name == "href"}
    assert len(links) == 20
    assert f"https://langfuse.example/project/p?a=1&b=2/traces/{3:032x}" in links
    assert "27 traces in Langfuse, 2 kept for later, 1 lost, 5 left out by choice" in page.text
    assert "27 traces in Langfuse, 2 kept for later, 1 lost" in render_markdown(summary, title="t", location="")


@pytest.mark.parametrize("url", ["javascript:alert({trace_id})", "data:text/html,x", '"><script>', ""])
def test_only_web_addresses_become_links(url: str) -> None:
    summary = summarise(run(30))
    summary["trace_url"] = url
    assert_inert(render_report(summary, title="t"))


def test_what_a_trace_is_called_cannot_leave_its_link() -> None:
    summary = summarise([one | {"trace_id": ATTACK} for one in run(5)])
    summary["trace_url"] = 'https://langfuse.example/"onclick=x/{trace_id}'
    page = Page(render_report(summary, title="t"))
    assert page.tags <= HARMLESS | {"a"}
    assert {name for name, _ in page.attributes if name.startswith("on")} == set()


def compared(now: list[dict[str, Any]], before: list[dict[str, Any]], **limits: float) -> Summary:
    summary = summarise(now)
    earlier = numbers_of(summarise(before), run="nightly-7")
    summary["comparison"] = compare(numbers_of(summary, run=""), earlier, limits)
    return summary


def test_a_first_run_has_nothing_to_be_compared_with() -> None:
    assert "run before" not in Page(render_report(summarise(run(50)), title="t")).text


def test_a_later_run_is_put_beside_the_one_before() -> None:
    summary = compared(run(50, dict.fromkeys(range(5), Outcome.REJECTED)), run(100), error_rate=0.02)
    page = render_report(summary, title="t")
    read = assert_inert(page)
    assert "Compared with the run before" in read.text
    assert "The run before of 2026-03-14 " in read.text
    assert "(nightly-7)" in read.text
    assert "error_rate went from 0 % to 10 % since the run before" in read.text
    assert '<span class="worse">50 % fewer</span>' in page
    assert "10.0 points more" in read.text


def test_what_a_comparison_says_never_becomes_markup() -> None:
    summary = compared(run(5), run(5))
    assert summary["comparison"] is not None
    summary["comparison"] |= {"run": ATTACK, "regressions": [ATTACK], "outcomes": {ATTACK: (1, 2)}}
    assert "script" not in assert_inert(render_report(summary, title="t")).tags


def test_the_page_forbids_scripts_and_loading_by_policy() -> None:
    read = Page(render_report(summarise(run(1)), title="t"))
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in read.attributes


def test_text_that_is_not_unicode_can_still_be_written() -> None:
    page = render_report(summarise(run(1), broken="\ud800"), title="\udfff")
    assert page.encode()


def test_every_outcome_has_its_advice_and_a_colour_of_its_own() -> None:
    assert set(ADVICE) == set(Outcome)
    page = render_report(summarise(run(9, dict(enumerate(Outcome)))), title="t")
    painted = set(re.findall(r'class="dot" style="background:#([0-9a-f]{6})"', page))
    assert len(painted) == len(Outcome)


def test_no_rows_at_all_is_said_plainly() -> None:
    read = assert_inert(render_report(summarise([]), title="t"))
    assert "The input has no rows." in read.text
    assert "Latency" not in read.text


def test_a_single_row_has_numbers_instead_of_a_chart() -> None:
    read = assert_inert(render_report(summarise(run(1)), title="t"))
    assert "for the only answered row" in read.text
    assert "None: every row is ok." in read.text


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.INVALID])
def test_a_run_without_an_answer_shows_reasons_and_no_empty_charts(outcome: Outcome) -> None:
    read = assert_inert(render_report(summarise(run(40, dict.fromkeys(range(40), outcome))), title="t"))
    assert "No row was answered" in read.text
    assert "0 %" in read.text
    assert "row 0 cannot work" in read.text
    assert "20 of 40" in read.text


def test_missing_token_counts_are_named_and_not_shown_as_zero() -> None:
    rows = run(20, prompt_tokens=None, completion_tokens=None, cached_tokens=None)
    read = assert_inert(render_report(summarise(rows), title="t"))
    assert "The server reported no token counts." in read.text
    assert "no token counts reported" in read.text
    assert "Output tokens per second" not in read.text


def test_huge_numbers_stay_readable() -> None:
    rows = [one | {"completion_tokens": 10**15 + n, "latency_s": 86_400.0 * n} for n, one in enumerate(run(30), 1)]
    read = assert_inert(render_report(summarise(rows), title="t"))
    assert "30 d" in read.text
    assert not re.search(
        r"\de[+-]?\d", "".join(re.findall(r">([^<]*)</text>", render_report(summarise(rows), title="t")))
    )


def test_a_resumed_run_marks_the_pause() -> None:
    old = [one | {"started_at": one["started_at"] - dt.timedelta(days=3)} for one in run(300) if one["row"] < 100]
    rows = old + [one for one in run(300) if one["row"] >= 100]
    assert "paused 3 d" in assert_inert(render_report(summarise(rows), title="t")).text


def test_large_untrusted_text_does_not_make_a_large_page() -> None:
    rows = run(100, dict.fromkeys(range(100), Outcome.FAILED), id="<" * 5000, error_message="&" * 5000)
    given = {f"setting {n}": "x" * 100_000 for n in range(20)}
    assert_inert(render_report(summarise(rows, **given), title="t"))


def test_charts_are_described_for_people_who_do_not_see_them() -> None:
    labels = [
        value for name, value in Page(render_report(summarise(run(200)), title="t")).attributes if name == "aria-label"
    ]
    assert "Distribution of latency" in labels
    assert len(labels) == 4


@pytest.mark.parametrize(("longest_s", "label"), [(0.4, "0.2 s"), (4.0, "2 s"), (400.0, "4 min"), (40_000.0, "3 h")])
def test_the_time_axis_counts_in_steps_that_people_use(longest_s: float, label: str) -> None:
    page = render_report(summarise(run(1, latency_s=longest_s)), title="t")
    assert f">{label}</text>" in page


@pytest.mark.parametrize("decades", [2, 3, 4, 5, 6, 9])
def test_a_wide_distribution_has_three_to_seven_labels(decades: int) -> None:
    rows = [
        one | {"latency_s": 0.01 * 10 ** (decades * n / 49), "completion_tokens": 9} for n, one in enumerate(run(50))
    ]
    page = render_report(summarise(rows), title="t")
    chart = page[page.index("Distribution of latency") : page.index("median")]
    assert 3 <= len(re.findall(r'<text class="mid"', chart)) <= 7

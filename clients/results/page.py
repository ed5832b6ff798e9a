"""The pieces every part of the report is made of. Whatever text comes in here goes out escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence

_CSS = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1d2329;--soft:#5d6872;--line:#e3e7ea;--card:#f6f8f9;--bar:#4478a8;
--mark:#b3541e}
@media(prefers-color-scheme:dark){:root{--bg:#14181c;--ink:#e4e8eb;--soft:#98a3ad;--line:#2b3239;--card:#1b2026;
--bar:#6ea3d4;--mark:#f0a36b}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",
"Apple SD Gothic Neo","Malgun Gothic","Noto Sans KR","Noto Sans CJK KR",sans-serif;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere;word-break:keep-all}
main{max-width:920px;margin:0 auto;padding:40px 24px 56px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:17px;margin:48px 0 4px}
h3{font-size:13px;font-weight:600;margin:20px 0 6px}
p{margin:0 0 12px}.soft,th,dt{color:var(--soft)}.small{font-size:13px}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin:28px 0 14px}
.tiles div{background:var(--card);border-radius:10px;padding:14px 16px}
.tiles b{display:block;font-size:25px;line-height:1.25;font-weight:650;letter-spacing:-.015em}
.tiles span{display:block;font-size:13px;color:var(--soft);line-height:1.4}
.stack{display:flex;gap:2px;height:16px;margin:14px 0 16px;border-radius:5px;overflow:hidden}
.stack i{min-width:4px}
.dot{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:9px}
table{border-collapse:collapse;width:100%;font-size:14px}
th{font-weight:500;font-size:13px;text-align:left}
th,td{padding:7px 14px 7px 0;border-bottom:1px solid var(--line);vertical-align:top}
th:last-child,td:last-child{padding-right:0}
.num{text-align:right;white-space:nowrap}.worse{color:var(--mark);font-weight:600}
.stop{background:var(--card);border-left:4px solid var(--mark);border-radius:4px;padding:10px 14px}
.beside td{padding-top:4px;padding-bottom:4px}
.advice td:last-child{width:66%}.word{white-space:nowrap}
.fact{display:inline-block}
code{font:12.5px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"Noto Sans Mono CJK KR",monospace;unicode-bidi:isolate;
white-space:pre-wrap}
code.soft{font-size:11.5px}a{color:inherit}.rows td:nth-child(2){min-width:116px}
.plot{padding:0 14px 0 46px}
svg{display:block;width:100%;overflow:visible;font-size:12px}
svg rect{fill:var(--bar);stroke:var(--bg);stroke-width:.6}
svg rect:hover{fill:var(--mark)}
svg text{fill:var(--soft)}svg .strong{fill:var(--ink);paint-order:stroke;stroke:var(--bg);stroke-width:4px}
svg .grid{stroke:var(--line)}svg .mark{stroke:var(--mark);stroke-dasharray:3 3}
.mid{text-anchor:middle}.end{text-anchor:end}
dl{margin:12px 0 0}.stats{display:flex;flex-wrap:wrap;gap:6px 30px}
dt{font-size:13px}dd{margin:0}
.pairs{display:grid;grid-template-columns:minmax(120px,max-content) 1fr;gap:4px 24px;font-size:14px}
.empty{background:var(--card);border-radius:10px;padding:14px 16px;color:var(--soft);margin:12px 0 0}
footer{margin-top:48px;border-top:1px solid var(--line);padding-top:16px}
@media(max-width:640px){main{padding:24px 16px 40px}.tiles{grid-template-columns:1fr 1fr}.tiles b{font-size:21px}
.rows thead{display:none}.rows tr{display:block;padding:10px 0;border-bottom:1px solid var(--line)}
.rows td{display:flex;gap:10px;padding:1px 0;border:0;text-align:left;white-space:normal}
.rows td::before{content:attr(data-name);flex:0 0 92px;color:var(--soft);font-size:13px}
.advice td:nth-child(4){display:block;padding-left:19px}.advice tr{display:flex;flex-wrap:wrap;padding:8px 0;
border-bottom:1px solid var(--line)}.advice td{border:0;padding:0 12px 0 0}.advice td:first-child{flex:1}
.advice td:nth-child(3){padding:0;min-width:64px}
.advice td:nth-child(4){flex:0 0 100%}.advice thead{display:none}
.word{white-space:normal}.advice td:first-child{min-width:0}
.beside thead{display:none}.beside td{border:0;padding:0;text-align:left}
.beside tr{display:grid;grid-template-columns:1fr 1fr;gap:0 10px;padding:6px 0;border-bottom:1px solid var(--line)}
.beside td:nth-child(4){grid-area:1/2;text-align:right}.beside td:nth-child(2),.beside td:nth-child(3){font-size:13px}
.beside td:nth-child(3){text-align:right}.beside td:nth-child(2)::before,.beside td:nth-child(3)::before{
content:attr(data-name) " ";color:var(--soft)}
.pairs{grid-template-columns:1fr;gap:0}.pairs dd{margin-bottom:8px}}
@media print{:root{--bg:#fff;--ink:#000;--soft:#444;--line:#ccc;--card:#f3f3f3;--bar:#4478a8;--mark:#a04000}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}main{max-width:none;padding:0}
tr,.plot,.tiles{break-inside:avoid}h2,h3{break-after:avoid}}
"""


def escape(text: object) -> str:
    """Any value as inert HTML text, also within a quoted attribute."""
    return html.escape(str(text).encode("utf-8", "replace").decode())


def page(title: str, body: str) -> str:
    """A whole document around `body`, which is HTML already; its policy forbids scripts and every kind of loading."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body><main>{body}</main></body></html>\n"
    )


def section(title: str, body: str, note: str = "") -> str:
    """A headed part of the page: `body` is HTML already, `title` and `note` are text.

    Args:
        title: Text.
        body: HTML.
        note: Text below the title; "" for none.
    """
    aside = f'<p class="small soft">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{aside}{body}</section>"


def empty(text: str) -> str:
    """Stands where there is nothing to draw."""
    return f'<p class="empty">{escape(text)}</p>'


def stats(numbers: Mapping[str, str]) -> str:
    """Named numbers side by side."""
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in numbers.items())
    return f'<dl class="stats">{shown}</dl>'


def table(kind: str, names: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; a name that begins with # is a column of numbers.

    Args:
        kind: CSS class.
        names: Of the columns; one that begins with # holds numbers.
        lines: Cells of each line as HTML, as many as names.
    """
    columns = [(name.lstrip("#"), ' class="num"' if name.startswith("#") else "") for name in names]
    head = "".join(f"<th{side}>{name}</th>" for name, side in columns)
    body = "".join(
        "<tr>"
        + "".join(f'<td{side} data-name="{name}">{cell}</td>' for (name, side), cell in zip(columns, line, strict=True))
        + "</tr>"
        for line in lines
    )
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'

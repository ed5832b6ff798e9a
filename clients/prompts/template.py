"""A user message from a row's columns: `Translate into Korean: {text}`."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import orjson

from clients.errors import SettingsError

_TOKENS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class NoColumnError(Exception):
    """A row lacks what the template needs; the text says what."""


class Template:
    """Text with `{name}` where a column's value goes; `{{` and `}}` stand for braces.

    A name is taken as it is. There is no way from it to an attribute, an item or a format: rows are not trusted.

    Raises:
        SettingsError: a brace without its other half, or no column at all.
    """

    def __init__(self, text: str) -> None:
        self._literals, self._names = [""], list[str]()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SettingsError("template: not UTF-8. Write it in a terminal that is set to UTF-8.") from error
        at = 0
        for token in _TOKENS.finditer(text):
            self._literals[-1] += text[at : token.start()]
            at = token.end()
            if token.group() in ("{{", "}}"):
                self._literals[-1] += token.group()[0]
            elif token.group(1):
                self._names.append(token.group(1))
                self._literals.append("")
            else:
                raise SettingsError(
                    f"template {_shown(text)}: {token.group()!r} at character {token.start() + 1} names no column. "
                    "Write {name} for a column, {{ and }} for braces."
                )
        self._literals[-1] += text[at:]
        if not self._names:
            raise SettingsError(f"template {_shown(text)} names no column. Write {{name}} where a column's value goes.")
        self.names = frozenset(self._names)

    def fill(self, fields: Mapping[str, Any]) -> str:
        """The text for one row; what is not text stands there as JSON.

        Raises:
            NoColumnError: the row has no such column, or nothing in it.
        """
        pieces = [self._literals[0]]
        for name, literal in zip(self._names, self._literals[1:], strict=True):
            value = fields.get(name)
            if value is None or (isinstance(value, str) and not value.strip()):
                lack = f"column {name!r} is empty" if name in fields else f"no column {name!r}"
                raise NoColumnError(f"{lack}; the row has: {_shown(', '.join(fields), 200) or 'none'}")
            pieces += (value if isinstance(value, str) else orjson.dumps(value).decode(), literal)
        return "".join(pieces)


#: The template of a job is the same for all of its rows.
template = functools.lru_cache(maxsize=4)(Template)


def _shown(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"

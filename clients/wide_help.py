"""How the help of our commands is laid out: on one screen, with all flags a word away."""

import argparse
import difflib
from typing import Any


class WideHelp(argparse.RawDescriptionHelpFormatter):
    """Help with room for long flags, one line each.

    Args:
        prog: Name of the command, from argparse.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=116)


class HelpParser(argparse.ArgumentParser):
    """A parser whose `--help` fits on a screen: of groups that few need it names the flags, and `--help-all` tells all.

    Args:
        rare: How the titles of those groups begin.
        elsewhere: Flags of another form of the command, and what to say to whoever gives one here.
        arguments: As argparse's own parser takes them.
    """

    def __init__(
        self, *, rare: tuple[str, ...] = (), elsewhere: tuple[tuple[str, ...], str] = ((), ""), **arguments: Any
    ) -> None:
        super().__init__(formatter_class=WideHelp, **arguments)
        self._rare = rare
        self._elsewhere = elsewhere
        if rare:
            self.add_argument("--help-all", action=_HelpAll, help="show every flag with what it does, and exit")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's own, but an unknown flag is told with the one that may be meant."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"there is no {unknown[0]} here{self._mend(unknown[0].partition('=')[0])}")
        return found

    def _mend(self, flag: str) -> str:
        flags, told = self._elsewhere
        if flag in flags:
            return f": {told}"
        near = difflib.get_close_matches(flag.replace("_", "-"), self._option_string_actions, n=1)
        return f". Did you mean {near[0]}?" if near and flag.startswith("-") else ". See --help"

    def format_help(self) -> str:
        """The help on one screen."""
        return self.format_groups(self._rare)

    def format_groups(self, rare: tuple[str, ...]) -> str:
        """The help, with the flags alone of groups whose titles begin so.

        Args:
            rare: Beginnings of titles; `()` tells everything.
        """
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        rest: list[argparse.Action] = []
        for group in self._action_groups:
            actions = group._group_actions  # noqa: SLF001  (argparse has no other name for them)
            if rare and (group.title or "").startswith(rare):
                rest += actions
                continue
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(actions)
            formatter.end_section()
        if rest:
            formatter.start_section("more, which --help-all explains")
            formatter.add_text(_names(rest))
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


class _HelpAll(argparse.Action):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, **arguments)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        print(parser.format_groups(()) if isinstance(parser, HelpParser) else parser.format_help(), end="")
        parser.exit()


def _names(actions: list[argparse.Action], width: int = 112) -> str:
    """The long flags, in lines of at most so many characters."""
    lines = [""]
    for action in actions:
        flag = action.option_strings[-1]
        lines[-1:] = [lines[-1], flag] if len(lines[-1]) + len(flag) > width - 2 else [f"{lines[-1]} {flag}".strip()]
    return "\n".join(lines)

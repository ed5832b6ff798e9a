"""How the help of our commands is laid out."""

import argparse


class WideHelp(argparse.RawDescriptionHelpFormatter):
    """Help with room for long flags, one line each, so that it fits on a screen.

    Args:
        prog: Name of the command, from argparse.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=116)

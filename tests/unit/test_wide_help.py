"""What a person is told who gives a flag that is not there."""

import pytest

from clients.wide_help import HelpParser


def parser() -> HelpParser:
    made = HelpParser(prog="command", elsewhere=(("--set",), "it is for a run on Kubeflow"))
    made.add_argument("--max-tokens", type=int)
    return made


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--maxtokens", "3"], "there is no --maxtokens here. Did you mean --max-tokens?"),
        (["--max_tokens=3"], "there is no --max_tokens=3 here. Did you mean --max-tokens?"),
        (["--set", "a=b"], "there is no --set here: it is for a run on Kubeflow"),
        (["--frobnicate"], "there is no --frobnicate here. See --help"),
        (["max"], "there is no max here. See --help"),
    ],
)
def test_an_unknown_flag_is_told_with_what_may_be_meant(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_known_flags_are_read() -> None:
    assert parser().parse_args(["--max-tokens", "3"]).max_tokens == 3

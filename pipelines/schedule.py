"""Recurring batch runs on Kubeflow, by name: create, list, show, pause, resume, run-now, delete.

Kubeflow runs each schedule in the cluster; nothing of this machine is needed afterwards.
"""

import argparse
import datetime as dt
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from clients.errors import LLMInferenceError, SettingsError
from pipelines.cron import Cron, time_zone

if TYPE_CHECKING:
    from pipelines.remote.arguments import Given
    from pipelines.remote.connection import Connection
    from pipelines.remote.parameters import Package
    from pipelines.remote.recurring import Schedule

_EXAMPLES = """commands:
  create     make a schedule, or change the one of that name
  list       every schedule, and when it fires next
  show       one schedule: arguments, next and last runs
  pause      let it not fire; resume lets it fire again
  run-now    make one run of it now, beside its times
  delete     remove it; its runs stay

examples:
  python -m pipelines.schedule create --name nightly --cron "0 2 * * *" --url http://vllm.ml:8000/v1 \\
      --prompts 's3://bucket/{date}/prompts.jsonl' --output 's3://bucket/{date}/results'
  python -m pipelines.schedule list
  python -m pipelines.schedule run-now nightly

All flags of a command: python -m pipelines.schedule create --help
"""

_CREATE_EXAMPLES = """examples:
  python -m pipelines.schedule create --cron "0 2 * * *" --dry-run --url http://vllm.ml:8000/v1 --prompts s3://b/p.jsonl
  python -m pipelines.schedule create --name nightly --cron "30 18 * * mon-fri" --timezone Asia/Seoul \\
      --prompts 's3://bucket/{date}/prompts.jsonl' --output 's3://bucket/{date}' --set profile=throughput

--cron has five fields (minute, hour, day of month, month, day of week) or is a word such as @daily. Its times are in
the zone of the cluster's scheduler: UTC, unless the cluster sets CRON_SCHEDULE_TIMEZONE; then tell it with --timezone.
{date} and {yesterday} in --prompts and --output become the day (UTC) on which Kubeflow made each run; before version
2.16 the day on which its first step began. Times that were missed during a pause are not made up for, and runs never
overlap.
"""


#: The date of each run, which Kubeflow puts here as it makes one, from 2.16 on. Older ones leave it as it stands; then
#: the run's first step takes the date of its own start.
_RUN_DATE = "[[CurrentTime.2006-01-02]]"


def main(arguments: list[str] | None = None) -> int:
    """Parse, act, print; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    chosen = _top_parser().parse_args(words[:1]).command
    from clients.display import error_line
    from clients.steps.interrupts import interruptible

    try:
        with interruptible():
            _COMMANDS[chosen](words[1:])
    except LLMInferenceError as error:
        error_line(str(error))
        return error.exit_code
    return 0


def _create(words: list[str]) -> None:
    from clients.batch.arguments import RARE_GROUPS
    from pipelines.remote.arguments import (
        KUBEFLOW_GROUP,
        Given,
        access_of,
        add_access_arguments,
        add_job_arguments,
        check_job,
        package_name,
    )
    from pipelines.remote.connection import Connection
    from pipelines.remote.parameters import Package
    from pipelines.volumes import parse_volumes

    rare = (*RARE_GROUPS, KUBEFLOW_GROUP)
    parser = _parser("create", "Make a schedule, or change the one of that name.", _CREATE_EXAMPLES, rare=rare)
    parser.usage = f'{parser.prog} --cron "0 2 * * *" --prompts FILE|URI [--name NAME] [--url URL] [...]'
    when = parser.add_argument_group("when")
    when.add_argument("--cron", metavar="TEXT", required=True, help="five fields in quotes, or @daily and the like")
    when.add_argument("--timezone", metavar="ZONE", default="UTC", help="the cluster scheduler's zone (default: UTC)")
    when.add_argument("--name", metavar="NAME", default="", help="of the schedule (default: the pipeline's)")
    when.add_argument("--paused", action="store_true", help="make it, but do not let it fire yet")
    when.add_argument("--dry-run", action="store_true", help="print the next three runs and the arguments, no more")
    add_access_arguments(parser)
    add_job_arguments(parser)
    given = Given(parser, words)
    options = given.options
    cron, zone = Cron.parse(options.cron), time_zone(options.timezone)
    package = Package.named(package_name(given)).mounting(parse_volumes(options.volumes))
    check_job(given, package, {})
    name = options.name or package.title
    if not name.isprintable() or not name.strip():
        raise SettingsError(f"--name {name!r} cannot be used: give one line of text")
    print(f"{name}: {cron.text} in {options.timezone}, the zone of the cluster's scheduler. Next runs:")
    for time in itertools.islice(cron.after(dt.datetime.now(dt.UTC), zone), 3):
        print(f"  {_moment(time)}")
    if options.dry_run:
        for parameter, value in _arguments(given, package, upload=False).items():
            print(f"  {parameter:<18}{_value(parameter, value)}")
        for volume in package.volumes:
            print(f"  {'(volume)':<18}{volume.claim} at {volume.folder}")
        print("Nothing was sent.")
        return
    connection = Connection.open(access_of(options))
    _put(connection, given, package, name, cron)


def _put(connection: "Connection", given: "Given", package: "Package", name: str, cron: Cron) -> None:
    from pipelines.remote.recurring import Wanted, put
    from pipelines.remote.submit import linked
    from pipelines.remote.uploads import uploaded

    options = given.options
    arguments = linked(_arguments(given, package, upload=True), connection)
    wanted = Wanted(
        name=name,
        cron=cron,
        timezone=options.timezone,
        version=uploaded(connection, package),
        arguments=arguments,
        experiment=connection.experiment(options.experiment),
        service_account=options.service_account,
        pipeline_root=options.pipeline_root,
    )
    found, done = put(connection, wanted, paused=options.paused)
    paused = "" if found.enabled else f"; it is paused, to let it fire: python -m pipelines.schedule resume {name}"
    print(f"{done.capitalize()}{paused}")
    print(connection.schedule_url(found.id))


def _arguments(given: "Given", package: "Package", *, upload: bool) -> dict[str, Any]:
    from pipelines.remote.arguments import check_job
    from pipelines.remote.staging import staged

    options = given.options
    arguments = {"run_date": _RUN_DATE, **check_job(given, package, {})}
    if options.prompts:
        arguments["prompts"] = staged(
            options.prompts,
            options.staging,
            package,
            upload=upload,
            say=lambda text: print(text, file=sys.stderr),
        )
    package.check(arguments)
    return arguments


def _list(words: list[str]) -> None:
    from pipelines.remote.recurring import schedules

    connection, _ = _connected("list", "Every schedule, and when it fires next.", words, named=False)
    known = schedules(connection)
    if not known:
        print("There is no schedule yet. Make one: python -m pipelines.schedule create --help")
        return
    rows = [("NAME", "STATE", "CRON", "ZONE", "NEXT", "PROMPTS")]
    for name, group in known.items():
        one = next((each for each in group if each.enabled), group[0])
        prompts = _value("prompts", one.arguments.get("prompts", ""))
        state = _state(one) if len(group) == 1 else "half changed"
        rows.append((name, state, one.cron.text if one.cron else "?", one.timezone, _next(one), prompts))
    _print_table(rows)
    for name, group in known.items():
        if len(group) > 1:
            print(f"The last change of {name} was interrupted. To finish it: python -m pipelines.schedule show {name}")


def _show(words: list[str]) -> None:
    from pipelines.remote.follow import resume_hint
    from pipelines.remote.recurring import runs_of, schedule

    connection, options = _connected("show", "One schedule: arguments, next and last runs.", words)
    one = schedule(connection, options.name)
    print(f"{one.name}: {_state(one)}, {one.cron.text if one.cron else 'its times were changed by somebody else'}")
    print(connection.schedule_url(one.id))
    if one.cron is not None and one.enabled:
        print(f"Next runs, in {one.timezone}:")
        for time in itertools.islice(one.cron.after(dt.datetime.now(dt.UTC), time_zone(one.timezone)), 3):
            print(f"  {_moment(time)}")
    print("Arguments:")
    for parameter, value in one.arguments.items():
        print(f"  {parameter:<18}{_value(parameter, value)}")
    runs = runs_of(connection, one, at_most=5)
    print("Last runs:" if runs else "No run yet.")
    for run in runs:
        print(f"  {str(run.get('created_at'))[:19].replace('T', ' ')} UTC  {run.get('state')}  {run['run_id']}")
    if runs and runs[0].get("state") == "FAILED":
        print(resume_hint(connection, str(runs[0]["run_id"])))


def _pause(words: list[str]) -> None:
    from pipelines.remote.recurring import schedule, set_enabled

    connection, options = _connected("pause", "Let a schedule not fire, until it is resumed.", words)
    set_enabled(connection, schedule(connection, options.name), enabled=False)
    print(f"{options.name} is paused; a run of it that is under way goes on")


def _resume(words: list[str]) -> None:
    from pipelines.remote.recurring import schedule, set_enabled

    connection, options = _connected("resume", "Let a paused schedule fire again; missed times stay missed.", words)
    one = schedule(connection, options.name)
    set_enabled(connection, one, enabled=True)
    print(f"{options.name} fires again, next {_next_of(one)}")


def _run_now(words: list[str]) -> None:
    from pipelines.remote.recurring import schedule
    from pipelines.remote.submit import create_run, run_body, stamp

    connection, options = _connected("run-now", "Make one run of a schedule now, beside its times.", words)
    one = schedule(connection, options.name)
    body = run_body(
        experiment=str(one.body["experiment_id"]),
        name=f"{one.name} now {stamp()}",
        arguments={**one.arguments, **_today(one)},
        version=one.body.get("pipeline_version_reference"),
        service_account=str(one.body.get("service_account") or ""),
        pipeline_root=str((one.body.get("runtime_config") or {}).get("pipeline_root") or ""),
    )
    run = create_run(connection, body)
    print(connection.run_url(run))
    print(f"Follow it with: python -m pipelines.run {connection.flags()} --follow {run}")


def _today(one: "Schedule") -> dict[str, str]:
    """Instead of a date that only a schedule's own runs get: none, which is today's."""
    return {"run_date": ""} if one.arguments.get("run_date") == _RUN_DATE else {}


def _delete(words: list[str]) -> None:
    from pipelines.remote.recurring import delete

    connection, options = _connected("delete", "Remove a schedule; its runs stay.", words)
    delete(connection, options.name)
    print(f"{options.name} is deleted; its runs stay")


_COMMANDS: Mapping[str, Callable[[list[str]], None]] = {
    "create": _create,
    "list": _list,
    "show": _show,
    "pause": _pause,
    "resume": _resume,
    "run-now": _run_now,
    "delete": _delete,
}


def _connected(
    command: str, what: str, words: list[str], *, named: bool = True
) -> "tuple[Connection, argparse.Namespace]":
    from pipelines.remote.arguments import access_of, add_access_arguments
    from pipelines.remote.connection import Connection

    parser = _parser(command, what, "")
    if named:
        parser.add_argument("name", metavar="NAME", help="of the schedule")
    add_access_arguments(parser)
    options = parser.parse_args(words)
    return Connection.open(access_of(options)), options


def _state(one: "Schedule") -> str:
    return "active" if one.enabled else "paused"


def _next(one: "Schedule") -> str:
    return _next_of(one) if one.enabled else "-"


def _next_of(one: "Schedule") -> str:
    try:
        zone = time_zone(one.timezone)
    except SettingsError:
        return "?"
    times = one.cron.after(dt.datetime.now(dt.UTC), zone) if one.cron else iter(())
    return next((_moment(time) for time in times), "?")


def _moment(time: dt.datetime) -> str:
    return f"{time:%a %Y-%m-%d %H:%M} {time.tzname()}"


def _value(parameter: str, value: Any) -> str:
    from pipelines.remote.staging import described

    return described(str(value)) if parameter == "prompts" else json.dumps(value, ensure_ascii=False)


def _print_table(rows: Iterable[tuple[str, ...]]) -> None:
    table = list(rows)
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _parser(command: str, what: str, examples: str, *, rare: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    from clients.wide_help import HelpParser

    return HelpParser(prog=f"python -m pipelines.schedule {command}", description=what, epilog=examples, rare=rare)


def _top_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.schedule",
        usage="python -m pipelines.schedule COMMAND [NAME] [--host URL] [...]",
        description=__doc__.splitlines()[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=_COMMANDS, help="one of the commands below")
    return parser


if __name__ == "__main__":
    sys.exit(main())

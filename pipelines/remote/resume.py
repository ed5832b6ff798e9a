"""The arguments by which a run goes on where an earlier one stopped.

What is finished is known by the content of the prompts, not by a run's id; so the arguments have to lead to the same
prompts, on another day too.
"""

import datetime as dt
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pipelines.remote.parameters import Package, whole

#: Parameters in which the pipeline replaces {run}.
WITH_RUN = ("prompts", "output")


def resumed(
    run: Mapping[str, Any], package: Package, *, say: Callable[[str], None], anew: Collection[str] = ()
) -> dict[str, Any]:
    """An earlier run's arguments, as they have to be for the next one to go on with its work.

    The date stays the earlier run's and {run} its id. A choice to answer everything anew was for that run alone. Its
    state is gone on with even when it is finished, as that of a run is which only got worse than the one before.

    Args:
        run: The earlier run, as the server gives it.
        package: The pipeline that runs again.
        say: Told what could not be kept as it was.
        anew: Parameters of which nothing need be said: they are given anew.
    """
    name = str(run["run_id"])
    found = whole((run.get("runtime_config") or {}).get("parameters") or {})
    for parameter in [parameter for parameter in found if parameter not in package.inputs]:
        say(f"{parameter} of run {name} is left out: this version's {package.name} has no such parameter")
        del found[parameter]
    for parameter in WITH_RUN:
        text = str(found.get(parameter, ""))
        if "{run}" in text and not text.startswith("inline:"):
            found[parameter] = text.replace("{run}", name)
            if parameter not in anew:
                say(f"{{run}} in {parameter} stays {name}")
    if date := _date(run, str(found.get("run_date") or "")):
        found["run_date"] = date
    options = {key: value for key, value in (found.get("options") or {}).items() if key != "fresh"}
    found["options"] = {**options, "resumes": name}
    return found


def _date(run: Mapping[str, Any], given: str) -> str:
    """The date that a run was for: the one it was given, else that of its start in UTC; "" when it tells neither."""
    if given and not given.startswith("[["):
        return given
    details = (run.get("run_details") or {}).get("task_details") or []
    checks = [str(node.get("start_time") or "") for node in details if node.get("display_name") == "check-prompts"]
    for moment in (*checks, str(run.get("created_at") or "")):
        try:
            return dt.datetime.fromisoformat(moment).astimezone(dt.UTC).date().isoformat()
        except ValueError:
            continue
    return ""

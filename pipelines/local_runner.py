"""Run a compiled pipeline with Kubeflow's local runner, in a process of its own.

The runner patches `print`, logs some hundred lines a run, and starts a process for every task. On its own it can do all
that to a log file and to a process group, both of which its parent owns: `python -m pipelines.local_runner` is started
by `pipelines.local_run`, and when its standard input closes, because its parent is gone, it ends with all its tasks.
"""

import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

#: Seconds that tasks have, after SIGTERM, to commit what is finished.
STOP_PATIENCE_S = 20.0


def main() -> None:
    """Run `PIPELINE.yaml ARGUMENTS.json ROOT`; exit status 0 when the pipeline succeeded, else 1."""
    pipeline, arguments, root = sys.argv[1:]
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches us too; our parent decides
    threading.Thread(target=_watch_parent, args=(stopping,), daemon=True).start()
    threading.Thread(target=_stop_tasks, args=(stopping,), daemon=True).start()
    succeeded = run_pipeline(Path(pipeline).read_text(encoding="utf-8"), json.loads(Path(arguments).read_text()), root)
    sys.exit(0 if succeeded else 1)


def run_pipeline(text: str, arguments: dict[str, Any], root: str) -> bool:
    """Execute a compiled pipeline; tasks inherit this process's environment and interpreter.

    Args:
        text: The compiled YAML.
        arguments: Pipeline parameters.
        root: Folder for artifacts.
    """
    from kfp import components, local

    warnings.simplefilter("ignore")  # kfp warns that local runs know no resources and secrets
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=root, raise_on_error=True)
    try:
        components.load_component_from_text(runnable_here(text))(**arguments)
    except Exception as error:  # noqa: BLE001  (the runner's edge: whatever it raises ends the run, and goes to the log)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


def runnable_here(text: str) -> str:
    """The pipeline without what only pods need: pip installs, retries, the second document with platform settings.

    Since no shard is tried again here, the task after the loop runs what it left, whatever became of it.
    """
    import yaml

    spec = next(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    for executor in spec["deploymentSpec"]["executors"].values():
        command = executor["container"]["command"]
        if command[:2] == ["sh", "-c"] and "pip install" in command[2]:
            executor["container"]["command"] = command[3:]
        executor["container"]["image"] = "python"  # a placeholder for the parameter; no image is used here
    for component in [spec["root"], *spec["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)  # a person who ends a run here would wait for the next try
            if any(name.startswith("for-loop") for name in task.get("dependentTasks", ())):
                task["triggerPolicy"] = {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    return str(yaml.dump(spec, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))


def _watch_parent(stopping: threading.Event) -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the parent closes its end, or is no more
    stopping.set()


def _stop_tasks(stopping: threading.Event) -> None:
    """End every task of the group, those that the runner still starts included; the runner then ends by itself."""
    stopping.wait()
    deadline = time.monotonic() + STOP_PATIENCE_S
    while time.monotonic() < deadline:
        os.killpg(0, signal.SIGTERM)
        time.sleep(0.3)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()

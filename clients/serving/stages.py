"""How far a pod is, from its state, its events and vLLM's log."""

import re

from clients.serving.evidence import (
    Evidence,
    Object,
    condition,
    is_ready,
    main_container,
    mapping,
    objects,
    quoted,
    text,
    whole,
)

STAGES = ("created", "scheduling", "pulling", "starting", "downloading", "loading", "compiling", "serving")

#: A line of the log, the stage it belongs to, and that in words; the last line that is known counts.
_LINES = tuple(
    (re.compile(line), stage, words)
    for line, stage, words in (
        (r"Application startup complete|Uvicorn running on|Starting vLLM (?:API )?server", "serving", "not ready yet"),
        (r"Capturing CUDA graphs?.*?(\d+)%", "compiling", "capturing CUDA graphs, {} %"),
        (r"Graph capturing finished|init engine .*took|Capturing (?:the model|CUDA graph)", "compiling", "warming up"),
        (r"torch\.compile|Dynamo bytecode|Compiling a graph|torch_compile_cache", "compiling", "compiling"),
        (r"KV cache (?:size|memory)|Maximum concurrency", "compiling", "sizing its KV cache"),
        (r"Model loading took|Loading weights took", "loading", "loading weights, 100 %"),
        (r"Loading .{0,24}checkpoint shards:\s*(\d+)% ", "loading", "loading weights, {} %"),
        (r"Time spent downloading weights", "loading", "loading weights"),
        (r"-(\d+)-of-(\d+)\.\w+:\s*(\d+)%\|", "downloading", "downloading weights, file {} of {} at {} %"),
        (r"(?:Fetching \d+ files|Downloading.{0,40}|\.(?:safetensors|bin|gguf|pt)):\s*(\d+)%\|", "downloading",
         "downloading weights, {} %"),
        # vLLM shows no progress while it downloads: this line is followed by silence or, with a full cache, by shards.
        (r"Starting to load model", "downloading", "downloading the model, or about to load it"),
    )
)  # fmt: skip


def log_stage(lines: list[str]) -> tuple[str, str]:
    """The stage that a log has come to, and that in words."""
    for line in reversed(lines):
        for pattern, stage, words in _LINES:
            if found := pattern.search(line):
                return stage, words.format(*(part.lstrip("0") or "0" for part in found.groups()))
    return "starting", "starting vLLM"


def pod_stage(pod: Object, evidence: Evidence) -> tuple[str, str]:
    """The stage of a pod, and that in words."""
    if is_ready(pod):
        return "serving", "serving"
    if not text(pod, "spec", "nodeName") and condition(pod, "PodScheduled").get("status") != "True":
        return "scheduling", "waiting for a node"
    main = main_container(pod)
    status = next((one for one in objects(pod, "status", "containerStatuses") if text(one, "name") == main), {})
    if "running" in mapping(status, "state"):
        stage, words = log_stage(evidence.log(pod))
        restarts = whole(status, "restartCount")
        return stage, f"{words} (restarted {restarts} x)" if restarts else words
    for init in objects(pod, "status", "initContainerStatuses"):
        if "running" in mapping(init, "state") and not init.get("started"):
            return "downloading", f"running its init container {quoted(text(init, 'name'), 60)}"
    reason = text(status, "state", "waiting", "reason")
    if reason == "CrashLoopBackOff" or whole(status, "restartCount") or "terminated" in mapping(status, "state"):
        return "starting", "waiting to be restarted"
    return _before_the_start(pod, reason, evidence)


def _before_the_start(pod: Object, reason: str, evidence: Evidence) -> tuple[str, str]:
    said = next(iter(evidence.about("Pod", pod, "Pulling", "Pulled", "Created", "Started")), None)
    if "Image" in reason or said is None or said.reason == "Pulling":
        since = "" if said is None else f" for {max(evidence.age(said.last), 0):.0f} s"
        return "pulling", "pulling its image" + since
    return "starting", "creating its container"

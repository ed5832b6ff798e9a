"""What happens to the pods of a service: one scenario for each way to start, or not to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests.servers.kubernetes import vllm_words as words
from tests.servers.kubernetes.lives import PodLife

if TYPE_CHECKING:
    from tests.servers.kubernetes.cluster import FakeCluster

Life = Callable[[PodLife], Iterator[float]]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of cluster time that the stages of a start take."""

    creating_s: float = 1.0
    pulling_s: float = 15.0
    starting_s: float = 15.0
    downloading_s: float = 40.0
    loading_s: float = 30.0
    compiling_s: float = 30.0
    ending_s: float = 3.0


def serve(life: PodLife) -> Iterator[float]:
    """All goes well."""
    yield from life.pull()
    life.run()
    yield from start_up(life)


def start_up(life: PodLife) -> Iterator[float]:
    """vLLM's stages, from the first line to ready."""
    timing = life.cluster.timing
    yield from life.say(words.starting(life.model), timing.starting_s)
    port = next((port["containerPort"] for port in life.container.get("ports") or []), 8080)
    address = f"10.0.0.{10 + life.number}:{port}"
    refused = f'Get "http://{address}/health": dial tcp {address}: connect: connection refused'
    life.event("Warning", "Unhealthy", f"Startup probe failed: {refused}")
    yield timing.downloading_s
    yield from life.say(words.downloaded(life.model), 0.0)
    yield from life.say(words.loading(), timing.loading_s)
    yield from life.say(words.compiling(), timing.compiling_s)
    yield from life.say(words.serving(), 1.0)
    life.ready()


def hang_at(stage: Literal["downloading", "loading", "compiling"]) -> Life:
    """Gets as far as a stage and stays there."""

    def live(life: PodLife) -> Iterator[float]:
        yield from life.pull()
        life.run()
        yield from life.say(words.starting(life.model), 5.0)
        if stage in ("loading", "compiling"):
            yield from life.say(words.downloaded(life.model), 1.0)
            yield from life.say(words.loading()[:4] if stage == "loading" else words.loading(), 5.0)
        if stage == "compiling":
            yield from life.say(words.compiling()[:8], 5.0)
        yield 1e9

    return live


def late(life: PodLife) -> Iterator[float]:
    """Every second pod starts long after the first serves."""
    if life.number % 2:
        life.publish()
        yield life.cluster.late_s
    yield from serve(life)


def crash(last: Callable[[PodLife], list[str]], code: int = 1, reason: str = "Error", after_s: float = 5.0) -> Life:
    """Starts, says its last lines and dies; again and again."""

    def live(life: PodLife) -> Iterator[float]:
        yield from life.pull()
        while True:
            life.run()
            yield from life.say(last(life), after_s)
            life.die(code, reason)
            yield 1.0
            yield from life.back_off()

    return live


def recover(life: PodLife) -> Iterator[float]:
    """Dies twice for a passing reason and then serves."""
    yield from life.pull()
    for _ in range(2):
        life.run()
        yield from life.say(["ConnectionError: HTTPSConnectionPool(host='huggingface.co', port=443): timed out"], 2.0)
        life.die(1)
        yield 1.0
        yield from life.back_off()
    life.run()
    yield from start_up(life)


def _engine(cause: str) -> Callable[[PodLife], list[str]]:
    return lambda life: [*words.starting(life.model), *words.engine_died(cause)]


def pull_fails(why: str, *, times: int | None = None) -> Life:
    """The image does not come; with `times`, it does after so many tries."""

    def live(life: PodLife) -> Iterator[float]:
        life.publish()
        yield 1.0
        tries = 0
        while times is None or tries < times:
            tries += 1
            said = why.format(image=life.image, name=life.image.partition(":")[0].partition("@")[0])
            life.event("Normal", "Pulling", f'Pulling image "{life.image}"')
            yield 2.0
            life.event("Warning", "Failed", f'Failed to pull image "{life.image}": {said}')
            life.event("Warning", "Failed", "Error: ErrImagePull")
            life.wait_in("ErrImagePull", said)
            yield 3.0
            life.event("Normal", "BackOff", f'Back-off pulling image "{life.image}"')
            life.event("Warning", "Failed", "Error: ImagePullBackOff")
            life.wait_in("ImagePullBackOff", f'Back-off pulling image "{life.image}": ErrImagePull: {said}')
            yield 12.0
        yield from serve(life)

    return live


IMAGE_NOT_FOUND = (
    'rpc error: code = NotFound desc = failed to pull and unpack image "{image}": failed to resolve reference '
    '"{image}": {image}: not found'
)
IMAGE_UNAUTHORIZED = (
    'failed to pull and unpack image "{image}": failed to resolve reference "{image}": pull access denied, repository '
    "does not exist or may require authorization: authorization failed: no basic auth credentials"
)
REGISTRY_TIMEOUT = (
    'failed to pull and unpack image "{image}": failed to resolve reference "{image}": failed to do request: Head '
    '"https://registry.example/v2/{name}/manifests/v1": dial tcp 10.1.2.3:443: i/o timeout'
)


def mount_fails(life: PodLife) -> Iterator[float]:
    """A volume that does not mount."""
    life.publish()
    volumes = life.pod["spec"].get("volumes") or [{"name": "model-cache"}]
    named = next((volume["name"] for volume in volumes if "persistentVolumeClaim" in volume), volumes[0]["name"])
    while True:
        yield 5.0
        life.event(
            "Warning",
            "FailedMount",
            f'MountVolume.SetUp failed for volume "{named}" : mount failed: exit status 32\nMounting command: mount\n'
            "Output: mount.nfs: Connection timed out",
        )
        yield 115.0


def probe_kills(life: PodLife) -> Iterator[float]:
    """Too slow for its startup probe: killed and started again, for ever."""
    yield from life.pull()
    name = life.container["name"]
    refused = 'Get "http://10.0.0.10:8080/health": dial tcp 10.0.0.10:8080: connect: connection refused'
    life.run()
    while True:
        yield from life.say(words.starting(life.model), 5.0)
        life.event("Warning", "Unhealthy", f"Startup probe failed: {refused}")
        yield 20.0
        life.event("Normal", "Killing", f"Container {name} failed startup probe, will be restarted")
        yield 5.0
        life.die(137)
        yield 1.0
        life.restart()


def evicted(life: PodLife) -> Iterator[float]:
    """Fills its disk and is thrown out; its successor too."""
    yield from life.pull()
    life.run()
    yield from life.say(words.starting(life.model), 5.0)
    life.evict("Pod ephemeral local storage usage exceeds the total limit of containers 100Gi. ")


def deleted(life: PodLife) -> Iterator[float]:
    """Somebody deletes the service while it starts."""
    yield from life.pull()
    life.run()
    yield from life.say(words.starting(life.model), 5.0)
    life.cluster.delete_service(life.service, life.namespace)
    yield 1e9


def slow(life: PodLife) -> Iterator[float]:
    """Needs longer than the Deployment's progress deadline, and then serves."""
    yield from life.pull()
    life.run()
    yield life.cluster.slow_s
    yield from start_up(life)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens to a service.

    Attributes:
        life: Of each of its pods, once it has a node.
        prepare: Done to the cluster when the scenario is chosen.
        refuses_pods: Words with which an admission refuses its pods; "" for none.
        kserve: `works`; `silent` does nothing at all; `stuck` deploys but never lets go of what is deleted.
    """

    life: Life = serve
    prepare: Callable[["FakeCluster"], None] | None = None
    refuses_pods: str = ""
    kserve: Literal["works", "silent", "stuck"] = "works"


LIMIT_RANGE = "maximum memory usage per Container is 64Gi, but limit is 256Gi"
POD_SECURITY = (
    'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "kserve-container" must '
    'set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "kserve-container" '
    'must set securityContext.capabilities.drop=["ALL"])'
)

SCENARIOS: dict[str, Scenario] = {
    "happy": Scenario(),
    "late_replica": Scenario(life=late),
    "slow": Scenario(life=slow),
    "recovers": Scenario(life=recover),
    "downloading": Scenario(life=hang_at("downloading")),
    "loading": Scenario(life=hang_at("loading")),
    "compiling": Scenario(life=hang_at("compiling")),
    # where no pod gets a node
    "gpus_busy": Scenario(prepare=lambda cluster: cluster.take_all_gpus()),
    "no_such_product": Scenario(prepare=lambda cluster: cluster.relabel_nodes("NVIDIA-A100-SXM4-80GB")),
    "tainted": Scenario(prepare=lambda cluster: cluster.taint_nodes("reserved", "team-b")),
    "no_gpu_nodes": Scenario(prepare=lambda cluster: cluster.take_gpus_out()),
    "no_nodes": Scenario(prepare=lambda cluster: cluster.remove_nodes()),
    "claim_missing": Scenario(prepare=lambda cluster: cluster.lose_claims()),
    "claim_no_class": Scenario(prepare=lambda cluster: cluster.set_storage(None)),
    "claim_provisioning_failed": Scenario(prepare=lambda cluster: cluster.set_storage("fails")),
    "claim_never_bound": Scenario(prepare=lambda cluster: cluster.set_storage("hangs")),
    "claim_waits_for_pod": Scenario(prepare=lambda cluster: cluster.set_storage("waits")),
    # where no pod is made
    "quota": Scenario(prepare=lambda cluster: cluster.set_gpu_quota(0)),
    "limit_range": Scenario(refuses_pods=LIMIT_RANGE),
    "pod_security": Scenario(refuses_pods=POD_SECURITY),
    # where the container does not start
    "image_not_found": Scenario(life=pull_fails(IMAGE_NOT_FOUND)),
    "image_unauthorized": Scenario(life=pull_fails(IMAGE_UNAUTHORIZED)),
    "registry_timeout": Scenario(life=pull_fails(REGISTRY_TIMEOUT)),
    "registry_recovers": Scenario(life=pull_fails(REGISTRY_TIMEOUT, times=2)),
    "secret_missing": Scenario(prepare=lambda cluster: cluster.lose_secrets()),
    "mount_fails": Scenario(life=mount_fails),
    # where it dies
    "oom_killed": Scenario(life=crash(lambda life: words.starting(life.model), 137, "OOMKilled")),
    "crash_loop": Scenario(life=crash(_engine(words.UNKNOWN))),
    "hf_gated": Scenario(life=crash(lambda life: words.gated(life.model))),
    "hf_forbidden": Scenario(life=crash(lambda life: words.forbidden(life.model))),
    "hf_not_found": Scenario(life=crash(lambda life: words.no_repository(life.model))),
    "hf_unknown": Scenario(life=crash(lambda life: words.no_repository(life.model, "401 Client Error."))),
    "bad_argument": Scenario(life=crash(lambda _: words.BAD_ARGUMENT, 2)),
    "bad_parser": Scenario(life=crash(lambda _: words.BAD_PARSER)),
    "gpu_memory": Scenario(life=crash(_engine(words.GPU_MEMORY))),
    "gpu_taken": Scenario(life=crash(_engine(words.GPU_TAKEN))),
    "no_cache_blocks": Scenario(life=crash(_engine(words.NO_CACHE_BLOCKS))),
    "context_too_long": Scenario(life=crash(_engine(words.CONTEXT_TOO_LONG))),
    "block_shape": Scenario(life=crash(_engine(words.BLOCK_SHAPE))),
    "no_space": Scenario(life=crash(lambda life: [*words.starting(life.model), *words.NO_SPACE])),
    "probe_kills": Scenario(life=probe_kills),
    "evicted": Scenario(life=evicted),
    # where KServe does not do its part
    "kserve_silent": Scenario(kserve="silent"),
    "stuck_finalizer": Scenario(kserve="stuck"),
    "deleted": Scenario(life=deleted),
}

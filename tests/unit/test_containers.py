"""Why containers do not start or do not stay up."""

import pytest

from clients.serving.diagnose import Cause
from tests.unit.serving_objects import (
    NOT_FOUND,
    A,
    crashed,
    ended,
    event,
    find,
    looping,
    of,
    pod,
    waiting,
)


class TestImages:
    @pytest.mark.parametrize(
        ("said", "permanent", "words"),
        [
            (NOT_FOUND, True, "name and tag"),
            ("pull access denied, repository does not exist or may require authorization", True, "imagePullSecrets"),
            ("unexpected status from HEAD request: 401 Unauthorized", True, "imagePullSecrets"),
            ("429 Too Many Requests - toomanyrequests: You have reached your pull rate limit", False, "a mirror"),
            ("dial tcp: lookup registry-1.docker.io: no such host", False, "tries again"),
            ("unexpected status: 503 Service Unavailable", False, "tries again"),
            ("net/http: TLS handshake timeout", False, "tries again"),
            ("something new", False, "tries again"),
        ],
    )
    def test_what_the_registry_says_decides(self, said: str, permanent: bool, words: str) -> None:
        failed = event("Failed", f'Failed to pull image "vllm/vllm-openai:v0.32.0": {said}', age=1, first=30, count=2)
        found = of(pod(state=waiting("ImagePullBackOff", 'Back-off pulling image "x"')), events=(failed,))
        assert (found.kind, found.fatal) == ("image_pull", permanent)
        assert words in found.message
        assert "rpc error" not in found.message

    @pytest.mark.parametrize(("first", "count", "fatal"), [(19, 1, False), (21, 1, True), (5, 2, True)])
    def test_a_refusal_is_final_at_the_second_time_or_after_twenty_seconds(
        self, first: float, count: int, fatal: bool
    ) -> None:
        said = f'Failed to pull image "vllm/vllm-openai:v0.32.0": {NOT_FOUND}'
        seen = pod(state=waiting("ErrImagePull", NOT_FOUND))
        found = of(seen, events=(event("Failed", said, age=1, first=first, count=count),))
        assert found.fatal is fatal
        assert find(pods=(seen,)).stage == "pulling"

    def test_a_name_that_is_none_is_final_at_once(self) -> None:
        assert of(pod(state=waiting("InvalidImageName", "couldn't parse image name"), age=2)).fatal

    def test_a_full_disk_is_named(self) -> None:
        said = "failed to extract layer: write /var/lib/x: no space left on device"
        assert of(pod(state=waiting("ErrImagePull", said))).kind == "disk_full"


class TestConfig:
    @pytest.mark.parametrize(
        ("said", "words"),
        [
            ('secret "hf-token" not found', "Secret hf-token does not exist. Create it"),
            ("couldn't find key HF_TOKEN in Secret ml/hf-token", "Secret ml/hf-token has no key HF_TOKEN. Add it"),
            ('configmap "settings" not found', "Configmap settings does not exist"),
        ],
    )
    def test_what_is_missing_is_named(self, said: str, words: str) -> None:
        def told(first: float) -> Cause:
            failed = event("Failed", f"Error: {said}", age=1, first=first)
            return of(pod(state=waiting("CreateContainerConfigError", said)), events=(failed,))

        assert told(31).kind == "config"
        assert words in told(31).message
        assert told(31).fatal
        assert not told(29).fatal

    def test_a_command_that_does_not_exist(self) -> None:
        said = 'exec: "vlm": executable file not found in $PATH'
        found, _ = crashed(restarts=1, code=128, reason="StartError", message=said)
        assert of(found).kind == "config"
        assert of(found).fatal
        assert "command" in of(found).message

    def test_an_unknown_failure_gets_longer(self) -> None:
        failed = event("Failed", "Error: odd", first=119)
        assert not of(pod(state=waiting("CreateContainerError", "odd")), events=(failed,)).fatal
        assert of(pod(state=waiting("CreateContainerError", "odd"))).fatal  # placed 300 s ago

    @pytest.mark.parametrize(("first", "fatal"), [(299, False), (301, True)])
    def test_a_volume_that_is_not_mounted(self, first: float, fatal: bool) -> None:
        said = 'MountVolume.SetUp failed for volume "cache": mount failed: exit status 32'
        failed = event("FailedMount", said, first=first, age=2)
        found = of(pod(state=waiting("ContainerCreating")), events=(failed,))
        assert (found.kind, found.fatal) == ("volume_mount", fatal)

    def test_a_volume_that_was_mounted_in_the_end_is_forgotten(self) -> None:
        events = (event("FailedMount", "x", age=60, first=400), event("Pulling", age=30))
        assert find(pods=(pod(state=waiting("ContainerCreating")),), events=events).cause is None

    def test_a_secret_that_cannot_be_mounted(self) -> None:
        failed = event("FailedMount", 'MountVolume.SetUp failed for volume "s": secret "hf" not found', first=61)
        found = of(pod(state=waiting("ContainerCreating")), events=(failed,))
        assert (found.kind, found.fatal) == ("config", True)

    def test_a_network_that_is_not_there_yet(self) -> None:
        failed = event("FailedCreatePodSandBox", "plugin type cilium failed")
        found = of(pod(state=waiting("ContainerCreating")), events=(failed,))
        assert (found.kind, found.fatal) == ("sandbox", False)


class TestCrashes:
    def test_a_wrong_argument_is_final_at_the_first_crash(self) -> None:
        found = of(*crashed("usage: vllm [-h]\nvllm: error: unrecognized arguments: --disable-log-requests", code=2))
        assert (found.kind, found.fatal) == ("bad_argument", True)
        assert "unrecognized arguments: --disable-log-requests" in found.message

    def test_no_way_to_huggingface_is_final_only_when_it_stays(self) -> None:
        log = "OSError: We couldn't connect to 'https://huggingface.co' to load the files"
        assert not of(*crashed(log)).fatal
        assert not of(*looping(log, restarts=2)).fatal
        assert of(*looping(log, restarts=3)).fatal

    def test_a_refused_token_is_final_at_once(self) -> None:
        found = of(*crashed("huggingface_hub.errors.GatedRepoError: 401 Client Error. token hf_AbCdEf0123456789"))
        assert (found.kind, found.fatal) == ("hf_access", True)
        assert "AbCdEf" not in found.message

    def test_an_unknown_crash_is_final_when_it_comes_again(self) -> None:
        log = 'Traceback (most recent call last):\n  File "x.py", line 1\nTypeError: odd'
        once = of(*crashed(log))
        assert (once.kind, once.fatal) == ("crash_loop", False)
        twice = of(*looping(log))
        assert twice.fatal
        assert "died with exit code 1, restarted 1 x: TypeError: odd" in twice.message

    def test_two_different_ends_are_not_yet_a_loop(self) -> None:
        both = pod(state={"terminated": ended(1)}, last=ended(139), restarts=1)
        assert not of(both).fatal
        same = pod(state={"terminated": ended(1)}, last=ended(1), restarts=1)
        assert of(same).fatal

    def test_after_unknown_crashes_the_container_that_runs_now_may_do_better(self) -> None:
        again = pod(last=ended(1), restarts=2)
        assert not of(again).fatal
        assert not of(again, died={A: "TypeError: odd"}).fatal

    def test_a_container_that_runs_again_still_says_why_it_died(self) -> None:
        again = pod(last=ended(1), restarts=1)
        found = of(again, died={A: "vllm: error: unrecognized arguments: --x"})
        assert (found.kind, found.fatal) == ("bad_argument", True)
        assert not of(again, {A: "vllm: error: this log is of the one that runs"}).fatal

    def test_out_of_memory_names_the_limit(self) -> None:
        found = of(*looping(code=137, reason="OOMKilled"))
        assert (found.kind, found.fatal) == ("oom", True)
        assert "limit 64Gi" in found.message
        assert of(pod(last=ended(137, "OOMKilled"), restarts=1)).kind == "oom"

    def test_the_end_of_a_server_that_had_served_is_no_proof(self) -> None:
        assert not of(*crashed(code=137, reason="OOMKilled", lived=4000)).fatal
        assert not of(*crashed("INFO: Application startup complete.\nfoo")).fatal
        assert of(*crashed(code=137, reason="OOMKilled", lived=3500)).fatal

    def test_a_kill_by_the_startup_probe_is_no_lack_of_memory(self) -> None:
        killing = event("Killing", "Container kserve-container failed startup probe, will be restarted", age=20)
        log = "Loading safetensors checkpoint shards:  45% Completed"
        first, logs = crashed(log, code=137)
        found = of(first, logs, events=(killing,))
        assert (found.kind, found.fatal) == ("startup_probe", False)
        assert "was killed while loading weights, 45 %: its startup probe failed for 1200 s" in found.message
        again, logs = looping(log, code=137)
        assert of(again, logs, events=(killing,)).fatal

    def test_a_download_goes_on_where_the_probe_cut_it(self) -> None:
        killing = event("Killing", "Container kserve-container failed startup probe, will be restarted", age=20)
        again, logs = looping("model-00003-of-00007.safetensors:  45%|## | 2G/5G", code=137, restarts=2)
        assert not of(again, logs, events=(killing,)).fatal

    def test_the_event_alone_is_enough(self) -> None:
        killing = event("Killing", "Container kserve-container failed startup probe, will be restarted", age=2)
        assert of(pod(), events=(killing,)).kind == "startup_probe"
        stale = event("Killing", "Container kserve-container failed startup probe, will be restarted", age=250)
        assert find(pods=(pod(),), events=(stale,)).cause is None

    def test_a_kill_without_a_reason_is_told_as_such(self) -> None:
        assert "exit code 137 (killed)" in of(*looping(code=137)).message

    def test_init_containers_are_named(self) -> None:
        status = {
            "name": "storage-initializer",
            "state": waiting("CrashLoopBackOff"),
            "lastState": {"terminated": ended(137, "OOMKilled")},
            "restartCount": 2,
        }
        found = of(pod(state=waiting("PodInitializing"), init=[status]))
        assert (found.kind, found.fatal) == ("oom", True)
        assert "init container storage-initializer" in found.message
        assert "KServe's ConfigMap" in found.message

    def test_a_sidecar_that_is_well_hides_nothing(self) -> None:
        seen = pod(state=waiting("ImagePullBackOff", NOT_FOUND))
        well = {"name": "agent", "ready": True, "state": {"running": {}}, "lastState": {"terminated": ended(1)}}
        seen["status"]["containerStatuses"].insert(0, well)
        seen["spec"]["containers"].insert(0, {"name": "agent"})
        assert of(seen).kind == "image_pull"

    def test_an_init_container_that_is_done_is_no_crash(self) -> None:
        done = {"name": "storage-initializer", "state": {"terminated": ended(0, "Completed")}}
        assert find(pods=(pod(init=[done]),)).cause is None

    def test_the_kubelets_copy_of_the_log_serves_where_we_may_not_read_it(self) -> None:
        dead, _ = crashed(message="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
        assert of(dead).kind == "gpu_memory"

    @pytest.mark.parametrize(
        ("said", "kind", "fatal"),
        [
            ("Pod ephemeral local storage usage exceeds the total limit of containers 100Gi. ", "disk_full", True),
            ("The node was low on resource: ephemeral-storage. Threshold quantity: 2146223340", "disk_full", False),
            ("The node was low on resource: memory.", "evicted", False),
        ],
    )
    def test_evictions(self, said: str, kind: str, fatal: bool) -> None:
        status = {"phase": "Failed", "reason": "Evicted", "message": said}
        dead = [pod(f"llm-predictor-5d4-{n}", status=status, age=600 + n) for n in range(2)]
        found = of([pod(state=waiting("ContainerCreating")), *dead])
        assert (found.kind, found.fatal) == (kind, fatal)
        assert "llm-predictor-5d4-0" in found.message
        assert not of([pod(), dead[0]]).fatal

    def test_evictions_of_yesterday_are_forgotten(self) -> None:
        status = {"phase": "Failed", "reason": "Evicted", "message": "x"}
        assert find(pods=(pod(), pod("old", status=status, age=80000))).cause is None

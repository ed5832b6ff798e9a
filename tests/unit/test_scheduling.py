"""Why pods get no node, and why claims get no volume."""

from typing import Any

import pytest

from clients.serving.diagnose import Cause
from tests.unit.serving_objects import (
    SCHEDULER,
    A,
    B,
    cause,
    claim,
    event,
    find,
    node,
    of,
    pod,
    unplaced,
    waiting,
)


class TestScheduling:
    def test_taken_gpus_are_waited_for(self) -> None:
        nodes = (node("a"), node("b"), node("c", taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]))
        found = of(unplaced(SCHEDULER), nodes=nodes)
        assert (found.kind, found.fatal) == ("unschedulable", False)
        assert "of 3 nodes 1 with the taint {gpu: yes}, 2 with too little free nvidia.com/gpu" in found.message
        assert "It asks for 8 nvidia.com/gpu; 3 of 3 nodes offer it, 8 at most" in found.message
        assert "waits for GPUs" in found.message

    def test_nodes_that_are_too_small_are_never_large_enough(self) -> None:
        nodes = (node("a", gpus=4, product="NVIDIA-A100"), node("b", gpus=2, product="NVIDIA-A100"), node("c", gpus=0))
        found = of(unplaced(SCHEDULER, age=31), nodes=nodes)
        assert found.fatal
        assert "2 of 3 nodes offer it, 4 at most (gpu.product NVIDIA-A100)" in found.message
        assert "no node that it may use is large enough" in found.message
        assert not of(unplaced(SCHEDULER, age=29), nodes=nodes).fatal

    def test_a_cluster_without_gpus_lacks_the_device_plugin(self) -> None:
        found = of(unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."), nodes=(node(gpus=0),))
        assert found.fatal
        assert "0 of 1 nodes offer it" in found.message
        assert "device plugin" in found.message

    def test_room_for_fewer_replicas_than_wanted_is_never_enough(self) -> None:
        pods = [pod(A, ready=True), unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", name=B)]
        found = cause(2, pods=tuple(pods), nodes=(node(),))
        assert found.fatal
        assert "there is room for 1 of 2 replicas" in found.message
        assert not cause(2, pods=tuple(pods), nodes=(node("a"), node("b"))).fatal

    def test_replicas_that_avoid_each_other_need_a_node_each(self) -> None:
        term = {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {"app": "isvc.llm-predictor"}},
        }
        affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
        said = "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."
        apart = unplaced(said, name=B, spec={"affinity": affinity})
        found = cause(2, pods=(pod(A, ready=True), apart), nodes=(node(gpus=16),))
        assert found.fatal
        assert "1 with a replica already (anti-affinity)" in found.message

    def test_labels_that_no_node_has(self) -> None:
        said = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
        wrong = unplaced(said, spec={"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"}})
        found = of(wrong, nodes=(node("a"), node("b")))
        assert found.fatal
        assert "2 without the labels asked for (nvidia.com/gpu.product=NVIDIA-H200)" in found.message
        assert "node selector" in found.message

    @pytest.mark.parametrize(
        ("operator", "values", "matches"),
        [
            ("In", ["NVIDIA-H100-80GB-HBM3"], True),
            ("In", ["other"], False),
            ("NotIn", ["NVIDIA-H100-80GB-HBM3"], False),
            ("Exists", None, True),
            ("DoesNotExist", None, False),
            ("Newer", None, True),
        ],
    )
    def test_node_affinity_is_understood(self, operator: str, values: Any, matches: bool) -> None:
        rule = {"key": "nvidia.com/gpu.product", "operator": operator, "values": values}
        required = {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}
        affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
        asked = unplaced(SCHEDULER, spec={"affinity": affinity})
        assert of(asked, nodes=(node(),)).fatal is not matches

    @pytest.mark.parametrize(
        ("toleration", "tolerated"),
        [
            ({"key": "gpu", "operator": "Exists"}, True),
            ({"operator": "Exists"}, True),
            ({"key": "gpu", "value": "yes", "effect": "NoSchedule"}, True),
            ({"key": "gpu", "value": "no"}, False),
            ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ],
    )
    def test_a_taint_on_every_node_needs_a_toleration(self, toleration: dict[str, str], tolerated: bool) -> None:
        tainted = node(taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}])
        found = of(unplaced(SCHEDULER, spec={"tolerations": [toleration]}), nodes=(tainted,))
        assert found.fatal is not tolerated
        assert ("Add a toleration for gpu=yes:NoSchedule" in found.message) is not tolerated

    def test_a_node_that_is_not_ready_may_come_back(self) -> None:
        sick = node(taints=[{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
        said = "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."
        assert not of(unplaced(said), nodes=(sick,)).fatal
        assert not of(unplaced(said)).fatal

    @pytest.mark.parametrize(("age", "fatal"), [(59, False), (61, True)])
    def test_without_sight_of_the_nodes_the_scheduler_is_believed(self, age: float, fatal: bool) -> None:
        said = (
            "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated "
            "taint {gpu: yes}. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
        )
        assert of(unplaced(said, age=age)).fatal is fatal

    def test_without_sight_of_the_nodes_taken_gpus_are_no_proof(self) -> None:
        assert not of(unplaced(SCHEDULER, age=4000)).fatal

    def test_newer_schedulers_say_when_emptying_a_node_would_not_help(self) -> None:
        said = (
            "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: "
            "2 Preemption is not helpful for scheduling."
        )
        found = of(unplaced(said))
        assert found.fatal
        assert "ask for fewer GPUs" in found.message

    def test_an_autoscaler_that_adds_a_node_keeps_the_hope_up(self) -> None:
        seen = {"nodes": (node(gpus=4),), "events": (event("TriggeredScaleUp", "pod triggered scale-up", age=60),)}
        found = of(unplaced(SCHEDULER), **seen)
        assert not found.fatal
        assert "autoscaler is adding a node" in found.message

    def test_an_autoscaler_that_cannot_help_makes_it_sure_at_once(self) -> None:
        said = "pod didn't trigger scale-up: 1 Insufficient nvidia.com/gpu"
        seen = {"nodes": (node(gpus=4),), "events": (event("NotTriggerScaleUp", said, age=1),)}
        assert of(unplaced(SCHEDULER, age=5), **seen).fatal
        assert not of(unplaced(SCHEDULER, age=500), **(seen | {"nodes": (node(gpus=8),)})).fatal

    @pytest.mark.parametrize(("age", "fatal"), [(29, False), (31, True)])
    def test_a_missing_claim(self, age: float, fatal: bool) -> None:
        said = '0/3 nodes are available: persistentvolumeclaim "model-cache" not found. preemption: 0/3'
        found = of(unplaced(said, age=age))
        assert (found.kind, found.fatal) == ("claim_missing", fatal)
        assert "claim model-cache not found. Create it" in found.message

    @pytest.mark.parametrize(
        ("reason", "words"),
        [
            ("2 node(s) were unschedulable", "2 cordoned. Uncordon"),
            ("2 node(s) had volume node affinity conflict", "2 out of reach of its volume"),
            ("2 Too many pods", "2 Too many pods"),
            ("2 node(s) had untolerated taint(s)", "2 with a taint that it does not tolerate"),
        ],
    )
    def test_other_reasons_are_in_words(self, reason: str, words: str) -> None:
        found = of(unplaced(f"0/2 nodes are available: {reason}.", age=10), nodes=(node("a"), node("b")))
        assert words in found.message
        assert not found.fatal

    def test_a_cluster_without_nodes_has_room_for_nothing(self) -> None:
        found = of(unplaced("no nodes available to schedule pods"), nodes=())
        assert found.fatal
        assert "It can never be placed: the cluster has no nodes" in found.message
        assert of(unplaced("no nodes available to schedule pods")).fatal

    def test_an_ill_gpu_may_be_mended(self) -> None:
        ill = node()
        ill["status"] = {"allocatable": {"nvidia.com/gpu": "7"}, "capacity": {"nvidia.com/gpu": "8"}}
        found = of(unplaced(SCHEDULER), nodes=(ill,))
        assert not found.fatal
        assert "7 at most" in found.message

    def test_memory_is_shown_in_gibibytes(self) -> None:
        asked = {"containers": [{"name": "x", "resources": {"requests": {"memory": "900Gi"}}}]}
        found = of(unplaced("0/1 nodes are available: 1 Insufficient memory.", spec=asked), nodes=(node(),))
        assert found.fatal
        assert "It asks for 900Gi memory; 1 of 1 nodes offer it, 512Gi at most" in found.message

    def test_an_anti_affinity_to_others_is_not_taken_for_one_to_its_like(self) -> None:
        term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "other"}}}
        affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
        said = "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."
        apart = unplaced(said, name=B, spec={"affinity": affinity})
        assert not cause(2, pods=(pod(A, ready=True), apart), nodes=(node(gpus=16),)).fatal

    def test_a_pod_that_asks_for_nothing_special(self) -> None:
        plain = unplaced("0/1 nodes are available: 1 node(s) were unschedulable.", spec={"containers": [{"name": "x"}]})
        assert not of(plain, nodes=(node(gpus=0),)).fatal
        wrong = unplaced("x", spec={"containers": [{"name": "x"}], "nodeSelector": {"a": "b"}})
        assert of(wrong, nodes=(node(gpus=0),)).fatal

    def test_the_event_speaks_where_the_condition_has_no_words(self) -> None:
        found = of(pod(node=""), events=(event("FailedScheduling", SCHEDULER),))
        assert found.kind == "unschedulable"

    def test_gates_are_waited_for(self) -> None:
        gated = unplaced("", reason="SchedulingGated", spec={"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]})
        found = of(gated)
        assert not found.fatal
        assert "kueue" in found.message

    def test_the_services_own_older_pods_are_named(self) -> None:
        old = pod("llm-predictor-777-z", generation="777", age=9000, ready=True)
        found = of([unplaced(SCHEDULER), old])
        assert "Older pods of this service" in found.message
        assert "llm-predictor-777-z" in found.message
        assert not found.fatal


class TestClaims:
    UNBOUND = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."

    @pytest.mark.parametrize(
        ("reason", "said", "mend"),
        [
            ("FailedBinding", "no persistent volumes available for this claim and no storage class is set", "default"),
            ("ProvisioningFailed", 'storageclass.storage.k8s.io "nfs" not found', "StorageClass that exists"),
            ("ProvisioningFailed", "rpc error: MULTI_NODE_MULTI_WRITER is not supported", "ReadWriteMany"),
        ],
    )
    def test_a_claim_that_is_never_served(self, reason: str, said: str, mend: str) -> None:
        def told(first: float) -> Cause:
            about = event(reason, said, kind="PersistentVolumeClaim", name="model-cache", age=1, first=first)
            return of(unplaced(self.UNBOUND), claims=(claim(),), events=(about,))

        found = told(61)
        assert (found.kind, found.fatal) == ("claim_pending", True)
        assert "claim model-cache gets no volume" in found.message
        assert mend in found.message
        assert not told(59).fatal

    def test_a_driver_that_fails_may_recover(self) -> None:
        about = event(
            "ProvisioningFailed", "rpc error: DeadlineExceeded", kind="PersistentVolumeClaim", name="model-cache"
        )
        assert not of(unplaced(self.UNBOUND), claims=(claim(),), events=(about,)).fatal

    def test_waiting_for_its_first_pod_is_as_it_should_be(self) -> None:
        about = event("WaitForFirstConsumer", "waiting", kind="PersistentVolumeClaim", name="model-cache")
        found = of(unplaced(SCHEDULER), claims=(claim(),), events=(about,))
        assert found.kind == "unschedulable"

    def test_a_refusal_is_not_forgotten_while_it_is_tried_again(self) -> None:
        about: dict[str, Any] = {"kind": "PersistentVolumeClaim", "name": "model-cache"}
        failed = event("ProvisioningFailed", 'storageclass.storage.k8s.io "nfs" not found', age=70, **about)
        again = event("ExternalProvisioning", "Waiting for a volume to be created", age=2, **about)
        found = of(unplaced(self.UNBOUND), claims=(claim(),), events=(failed, again))
        assert "not found" in found.message
        assert found.fatal

    def test_a_provisioner_that_takes_its_time_is_named_after_a_minute(self) -> None:
        about: dict[str, Any] = {"kind": "PersistentVolumeClaim", "name": "model-cache"}
        waits = event("ExternalProvisioning", "Waiting for a volume to be created by 'nfs'", age=2, **about)
        found = of(unplaced(self.UNBOUND), claims=(claim(age=61),), events=(waits,))
        assert "Waiting for a volume to be created by 'nfs'" in found.message
        assert not found.fatal
        assert "has no volume yet" in of(unplaced(self.UNBOUND), claims=(claim(age=50),), events=(waits,)).message

    def test_silence_is_named_after_a_minute(self) -> None:
        assert "nothing happens" in of(unplaced(self.UNBOUND), claims=(claim(age=61),)).message
        assert "has no volume yet" in of(unplaced(self.UNBOUND), claims=(claim(age=59),)).message

    def test_a_lost_volume(self) -> None:
        assert of(pod(state=waiting("ContainerCreating")), claims=(claim(phase="Lost"),)).fatal

    def test_a_bound_claim_is_no_cause(self) -> None:
        assert find(pods=(pod(),), claims=(claim(phase="Bound"),)).cause is None

"""Checks of what keeps the models: the storage class and the claim for the cache."""

from clients.serving.cluster import Object
from clients.serving.evidence import mapping, name_of, text
from pipelines.checks.scene import Scene
from pipelines.checks.verdict import Verdict, failed, ok, unknown, warning

_DEFAULT = "storageclass.kubernetes.io/is-default-class"
_SHARED = {"ReadWriteMany", "ReadOnlyMany"}

#: Ends of the names of provisioners whose volumes pods of several nodes can mount: file systems on a network.
_MANY = (
    "nfs.csi.k8s.io", "nfs-subdir-external-provisioner", "nfs-provisioner", "cephfs.csi.ceph.com", "efs.csi.aws.com",
    "fsx.csi.aws.com", "filestore.csi.storage.gke.io", "lustre.csi.storage.gke.io", "file.csi.azure.com",
    "kubernetes.io/azure-file", "azurelustre.csi.azure.com", "blob.csi.azure.com", "csi.juicefs.com", "juicefs",
    "driver.longhorn.io", "csi.weka.io", "spectrumscale.csi.ibm.com", "beegfs.csi.netapp.com", "csi.vastdata.com",
    "lustre-client.csi.whamcloud.com", "kubernetes.io/glusterfs", "manila.csi.openstack.org", "openebs.io/nfsrwx",
    "fss.csi.oraclecloud.com", "nasplugin.csi.alibabacloud.com", "vpc.file.csi.ibm.io", "ibm.io/ibmc-file",
    "csi-isilon.dellemc.com", "csi.hpe.com/nfs", "seaweedfs-csi-driver", "nas.csi.ncloud.com",
)  # fmt: skip

#: Those whose file-system volumes only pods of one node can mount: block devices and folders of a node.
_ONE = (
    "ebs.csi.aws.com", "ebs.csi.eks.amazonaws.com", "kubernetes.io/aws-ebs", "pd.csi.storage.gke.io",
    "kubernetes.io/gce-pd", "disk.csi.azure.com", "kubernetes.io/azure-disk", "rbd.csi.ceph.com",
    "cinder.csi.openstack.org", "kubernetes.io/cinder", "rancher.io/local-path", "kubernetes.io/no-provisioner",
    "hostpath.csi.k8s.io", "k8s.io/minikube-hostpath", "microk8s.io/hostpath", "docker.io/hostpath", "topolvm.io",
    "openebs.io/local", "local.csi.openebs.io", "zfs.csi.openebs.io", "diskplugin.csi.alibabacloud.com",
    "dobs.csi.digitalocean.com", "csi.hetzner.cloud", "linodebs.csi.linode.com", "blockvolume.csi.oraclecloud.com",
    "vpc.block.csi.ibm.io", "blk.csi.ncloud.com",
)  # fmt: skip


def storage_class(scene: Scene) -> Verdict:
    """Whether a model cache can be made that pods of all nodes mount."""
    if not scene.spec.model_cache:
        return ok("not needed: each pod keeps its model in a folder of its own")
    if _claim(scene) is not None:
        return ok(f"not needed: the claim {scene.spec.model_cache} is there")
    classes = scene.cluster.list("StorageClass")
    wanted = scene.spec.storage_class
    found = [each for each in classes if (text(each, "metadata", "name") == wanted if wanted else _is_default(each))]
    if found:
        return _judge(found[0], classes)
    if wanted:
        return failed(f"{wanted} is not there; found {_names(classes) or 'none'}", _other(classes))
    return failed(f"the cluster has no default class; found {_names(classes) or 'none'}", _other(classes))


def _is_default(found: Object) -> bool:
    return text(found, "metadata", "annotations", _DEFAULT) == "true"


def _judge(found: Object, classes: list[Object]) -> Verdict:
    about = f"{name_of(found)} ({text(found, 'provisioner') or 'no provisioner'})"
    mounts = _mounts_many(found)
    if mounts:
        return ok(f"{about} does ReadWriteMany")
    if mounts is None:
        return warning(f"{about} is not one we know to do ReadWriteMany", "ask who runs the cluster, or try a claim")
    return failed(f"{about} cannot do ReadWriteMany, which pods of several nodes need", _other(classes))


def _mounts_many(found: Object) -> bool | None:
    """Whether pods of several nodes can mount a class's volumes; None when its provisioner is not known."""
    provisioner = text(found, "provisioner")
    if provisioner.endswith(_MANY) or "nfs" in provisioner:
        return True
    return False if provisioner.endswith(_ONE) else None


def _names(classes: list[Object]) -> str:
    return ", ".join(sorted(name_of(each) for each in classes)[:6])


def _other(classes: list[Object]) -> str:
    able = sorted(name_of(each) for each in classes if _mounts_many(each))
    name = f"--storage-class {able[0]}" if able else "install a class on NFS, CephFS or the cloud's file service"
    return f'{name} (parameter storage_class), or do without a cache: --model-cache ""'


def _claim(scene: Scene) -> Object | None:
    return scene.cluster.get("PersistentVolumeClaim", scene.spec.model_cache)


def model_cache(scene: Scene) -> Verdict:
    """What stands of the claim; a run makes one that is missing."""
    name = scene.spec.model_cache
    if not name:
        return ok("none: each pod downloads its model anew")
    claim = _claim(scene)
    where = f"claim {scene.namespace}/{name}"
    if claim is None:
        return ok(f"{where} will be made by the first run, {scene.spec.cache_size}")
    modes = [str(mode) for mode in mapping(claim, "spec").get("accessModes") or []]
    size = text(claim, "status", "capacity", "storage") or text(claim, "spec", "resources", "requests", "storage")
    describe = f"kubectl -n {scene.namespace} describe pvc {name}"
    if mapping(claim, "metadata").get("deletionTimestamp"):
        return failed(f"{where} is being deleted", "wait until it is gone, or name another with --model-cache")
    if not _SHARED & set(modes) and scene.spec.replicas > 1:
        return failed(
            f"{where} is {', '.join(modes) or 'of no access mode'}, which pods of several nodes cannot mount",
            "name a claim with ReadWriteMany by --model-cache (parameter model_cache); a new name is made",
        )
    match text(claim, "status", "phase"):
        case "Bound":
            return ok(f"{where}, {size or 'of unknown size'}, {', '.join(modes)}")
        case "Lost":
            return failed(f"{where} has lost its volume", "delete it; the next run makes it anew", describe)
    return _pending(scene, claim, where, describe)


def _pending(scene: Scene, claim: Object, where: str, describe: str) -> Verdict:
    """A claim without a volume: in order when its class waits for the first pod."""
    wanted = text(claim, "spec", "storageClassName")
    classes = scene.cluster.list("StorageClass")
    own = [each for each in classes if (text(each, "metadata", "name") == wanted if wanted else _is_default(each))]
    if any(text(each, "volumeBindingMode") == "WaitForFirstConsumer" for each in own):
        return ok(f"{where} waits for the first pod that mounts it")
    if not own:
        about = f"its class {wanted} is not there" if wanted else "the cluster has no default class"
        return failed(f"{where} has no volume: {about}", "delete it and name a class with --storage-class", describe)
    return unknown(f"{where} has no volume yet", "see what its provisioner says", describe)

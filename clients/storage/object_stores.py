"""Connections to object stores: `s3://`, Kubeflow's own `minio://`, `gs://`, and whatever else pyarrow.fs knows."""

import dataclasses
import datetime as dt
import functools
from typing import Any

from clients.errors import StorageError
from clients.storage.addresses import shown

#: Where Kubeflow Pipelines keeps its artifacts unless it was set up otherwise.
MINIO_ENDPOINT = "http://minio-service.kubeflow:9000"

#: Tries of one request: Arrow waits longer from one to the next, up to a minute in all. It tries again after 503
#: SlowDown, other 5xx, resets and when nobody answers, not after a refusal.
_TRIES = 8

#: Seconds of one try without a connection, and without a byte. With every try in vain a store that takes connections
#: and never answers costs about two minutes.
_CONNECT_S, _ANSWER_S = 5.0, 10.0

#: The same for a copy within a store, which says nothing until gigabytes have been copied.
COPY_S = 300.0

#: How long Google's client tries a request again, for want of credentials too; its own limit is 15 minutes.
_GOOGLE = dt.timedelta(seconds=60)

#: Before a bucket's name: without credentials.
_NOBODY = "anonymous@"

_MEND = "Give a path, or an address such as s3://bucket/key."


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreAccess:
    """How this process reaches object stores; built once, at the edge that reads the environment.

    Attributes:
        minio_endpoint: Where `minio://` addresses lead to; "" for Kubeflow's own.
        minio_key: Access key for it; "" for none.
        minio_secret: Its secret.
        aws_endpoint: Where `s3://` addresses lead to; "" for Amazon.
        aws_region: Region of `s3://` buckets; "" finds out.
    """

    minio_endpoint: str = ""
    minio_key: str = ""
    minio_secret: str = dataclasses.field(default="", repr=False)
    aws_endpoint: str = ""
    aws_region: str = ""


_access = StoreAccess()


def use_access(access: StoreAccess) -> None:
    """Reach object stores so from now on. A process has one set of credentials, as it has one environment."""
    global _access
    _access = access


def connect(location: str, *, answer_s: float = _ANSWER_S) -> tuple[Any, str]:
    """A file system of pyarrow, and the path in it that an address means.

    Args:
        location: The address.
        answer_s: Seconds that an S3 store may be silent in one try.

    Raises:
        StorageError: the address cannot be used.
    """
    scheme, _, path = location.partition("://")
    path = path.strip("/")
    if not path:
        raise StorageError(f"cannot use {location}: it names no bucket. {_MEND}")
    if scheme in ("minio", "s3") and "//" in path:
        raise StorageError(f"cannot use {location}: a name between two slashes is empty. {_MEND}")
    if scheme == "minio":
        return _minio(_access, answer_s), path
    if scheme == "s3" and "?" not in path:
        return _s3(_access, path.partition("/")[0], answer_s), path
    if scheme == "gs" and "?" not in path:
        return _gs(anonymous=path.startswith(_NOBODY)), path.removeprefix(_NOBODY)
    return _other(location)


@functools.cache
def _minio(access: StoreAccess, answer_s: float) -> Any:
    from pyarrow import fs

    protocol, _, host = (access.minio_endpoint or MINIO_ENDPOINT).rpartition("://")
    keys = {"access_key": access.minio_key, "secret_key": access.minio_secret} if access.minio_key else {}
    # Without keys it is asked as nobody: what the pod may do at Amazon is no business of another store.
    return fs.S3FileSystem(
        endpoint_override=host.rstrip("/"),
        scheme=protocol or "http",
        region="us-east-1",
        anonymous=not keys,
        **_settings(answer_s),
        **keys,
    )


@functools.cache
def _s3(access: StoreAccess, bucket: str, answer_s: float) -> Any:
    from pyarrow import fs

    if access.aws_endpoint:
        protocol, _, host = access.aws_endpoint.rpartition("://")
        region = access.aws_region or "us-east-1"
        return fs.S3FileSystem(
            endpoint_override=host.rstrip("/"), scheme=protocol or "https", region=region, **_settings(answer_s)
        )
    try:
        region = access.aws_region or fs.resolve_s3_region(bucket)
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split())
        raise StorageError(f"cannot use s3://{bucket}: {found}. Mend the bucket's name, or set AWS_REGION.") from error
    return fs.S3FileSystem(region=region, **_settings(answer_s))


@functools.cache
def _gs(*, anonymous: bool) -> Any:
    from pyarrow import fs

    return fs.GcsFileSystem(anonymous=anonymous, retry_time_limit=_GOOGLE)


def _settings(answer_s: float) -> dict[str, Any]:
    from pyarrow import fs

    # A small file is a single put: there is nothing in between that a kill could leave behind.
    return {
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
        "connect_timeout": _CONNECT_S,
        "request_timeout": answer_s,
        "allow_delayed_open": True,
    }


def _other(location: str) -> tuple[Any, str]:
    import pyarrow as pa
    from pyarrow import fs

    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        found = shown(" ".join(str(error).split()))
        raise StorageError(f"cannot use {shown(location)}: {found}. {_MEND}") from error
    return filesystem, path

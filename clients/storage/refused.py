"""What a disk or an object store says when it refuses, and what to do about it."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from clients.errors import StorageError
from clients.storage.addresses import shown

#: What is found in the words of an object store, and the mend.
_MENDS = (
    (("EXPIRED_TOKEN", "ExpiredToken", "token has expired"), "The credentials have expired: renew them in the Secret"),
    (
        ("INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID", "UNRECOGNIZED_CLIENT"),
        "The store does not know these credentials: mend the Secret",
    ),
    (
        # A HEAD request is answered without a body, so the store cannot say what it does not like.
        ("HTTP status 400) during Head", "ACCESS_DENIED during Head", "HTTP status 403) during Head"),
        "See in the Secret that the credentials are right, have not expired, and may list, read and write there",
    ),
    (
        ("ACCESS_DENIED", "HTTP status 403", "PERMISSION_DENIED"),
        "The credentials lack the right: allow them to list, read and write there",
    ),
    (("NO_SUCH_BUCKET", "HTTP status 404"), "Make the bucket, or mend its name"),
    (
        ("SLOW_DOWN", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "HTTP status 50"),
        "The store is overloaded or in trouble: wait a little",
    ),
    (("OAuth2", "UNAUTHENTICATED"), "Let the service account act as one of Google's that may read and write there,"),
    (("NETWORK_CONNECTION", "curlCode"), "Check the store's address and that it answers"),
)


@contextlib.contextmanager
def refusals(verb: str, where: str | Path) -> Iterator[None]:
    """Turn what a disk or an object store refuses inside the block into a `StorageError` with a mend.

    Args:
        verb: What is done: list, read or write.
        where: To what.

    Raises:
        StorageError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        found = f"cannot {verb} {shown(str(where))}: {reason(error)}".rstrip(". ")
        raise StorageError(f"{found}. {_mend(verb, error)} and run the same command again.") from error


def _mend(verb: str, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space"
    said = str(error)
    if "Path does not exist" in said or "NOT_FOUND" in said:  # in an object store
        return "See that it is there, and mend its name,"
    known = (
        (mend for words, mend in _MENDS if any(word in said for word in words))
        if "AWS Error" in said or "google" in said
        else ()
    )
    return next(iter(known), f"Check that it can be {'written' if verb == 'write' else 'read'}")


def reason(error: OSError) -> str:
    """What an error says, on one line; Google's client says much more."""
    said = " ".join((error.strerror or str(error)).split())
    return shown(said.partition(" error_info=")[0].rpartition("last message of ")[2])

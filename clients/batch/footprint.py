"""How much memory the process takes beyond what it uses: what it loads in vain, and what it does not give back."""

import contextlib
import ctypes
import os
import sys
from typing import Any, cast

#: glibc's number for the size from which on a block is mapped for itself and goes back to the system when it is freed,
#: and that size. Left alone, glibc raises it to the size of the largest block that was ever freed, up to 32 MB.
_M_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 1 << 20

#: What pyarrow loads where it is installed, though nothing here needs it: 50 MB.
_IN_VAIN = ("numpy", "pandas")


def keep_small() -> None:
    """Make this process one that runs a job and nothing else; called before pyarrow is loaded.

    Arrow's own allocator keeps most of what it ever held, the system's gives it back: a run peaks some 30 MB lower, at
    no cost in time.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    modules = cast(dict[str, Any], sys.modules)
    for name in _IN_VAIN:
        modules.setdefault(name, None)
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)

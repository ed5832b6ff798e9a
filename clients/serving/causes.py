"""The type of a cause."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cause:
    """Something that stands in the way of a service.

    Attributes:
        kind: One word for programs, such as `unschedulable` or `hf_access`.
        message: One line for people: what, where, what was found, how to mend it.
        fatal: It can never work as it is. Otherwise it may still resolve itself.
    """

    kind: str
    message: str
    fatal: bool

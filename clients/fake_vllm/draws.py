"""Chance that can be repeated: a number drawn from a seed and a name, whatever else happened before."""

import hashlib


def uniform(seed: int, purpose: bytes, mark: bytes, number: int = 0) -> float:
    """A number in [0, 1), always the same for the same arguments.

    Args:
        seed: The run's seed.
        purpose: What is drawn, so that two questions about one text have independent answers.
        mark: Whom it concerns, such as the digest of a text.
        number: Which of several draws.
    """
    raw = hashlib.blake2b(b"%d/%b/%d/%b" % (seed, purpose, number, mark), digest_size=8).digest()
    return (int.from_bytes(raw, "little") >> 11) * 2.0**-53

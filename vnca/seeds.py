"""Seeds that depend on what they are for."""

import hashlib
import operator


def seed_of(*parts: int | str) -> int:
    """A seed, from 0 to 2**32 - 1, for one purpose. Hashed, because generators use the low 32 bits of a seed only."""
    parts = tuple(part if isinstance(part, str) else operator.index(part) for part in parts)  # NumPy's as Python's
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")

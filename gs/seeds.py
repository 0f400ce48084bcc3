"""Seeds that depend only on the run and the iteration."""

_MASK64 = (1 << 64) - 1


def derive_seed(seed: int, *keys: int | str) -> int:
    """A well-mixed seed in [0, 2^31) from a run's seed and any keys, e.g. ("mask", iteration).

    Counter-based draws take it, so a run can stop and go on without storing generator states.
    Mixing: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), once per 64-bit word.
    """
    state = _splitmix64(seed & _MASK64)
    for key in keys:
        if isinstance(key, str):
            key = int.from_bytes(key.encode("utf-8"), "little")
        while True:
            state = _splitmix64(state ^ (key & _MASK64))
            key >>= 64
            if key in (0, -1):
                break
    return state >> 33


def _splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)

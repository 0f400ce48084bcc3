"""How idle OpenMP threads wait: they spin for a moment and then sleep.

PyTorch's threads on a CPU meet at the end of every loop, and GNU's OpenMP lets those that are early
spin, for a time that on a machine of their own never ends. Where other programs want the cores, a
spinning thread keeps them from the one that it waits for. The environment is read once, when torch
is loaded, so this is set as `gs` is imported.

30 iterations of the built-in scene on two cores, seconds, two runs each, alone and beside two
programs that never wait:

    GOMP_SPINCOUNT    alone         beside
    not set           16.5  16.8    58.3
    30,000            16.7  16.5    49.2  41.4
    10,000            16.8  16.8    35.5  35.7
    3,000             16.7  17.0    32.4  31.2
    1,000             18.4  18.8    28.9  28.2
    0                 19.6  19.7    28.2  31.5
    (PASSIVE)         19.2  19.6    33.9  34.8

PASSIVE is OMP_WAIT_POLICY's. 3,000 costs 1 % alone and takes 1.9 times as long beside two.
"""

from collections.abc import MutableMapping

SPIN_COUNT = "3000"
USERS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def let_idle_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Set how long idle threads spin, unless the user has said anything about it."""
    if not any(name in environment for name in USERS):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT

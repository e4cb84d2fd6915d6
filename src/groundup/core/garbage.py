"""How often Python's garbage collector runs."""

import atexit
import gc

# Thresholds of gc.set_threshold. With Python's own (700, 10, 10) it goes through all objects again and again while modules are
# imported: a fifth of torch's import, and a tenth of the tiny recipe's processor time (AMD EPYC).
SELDOM = (50_000, 20, 50)


def collect_seldom() -> None:
    """For processes of groundup itself, not where it is imported as a library.

    At exit, when all memory is returned anyway, nothing is collected: with torch imported that takes 0.4 s (AMD EPYC).
    """
    gc.set_threshold(*SELDOM)
    atexit.register(gc.freeze)

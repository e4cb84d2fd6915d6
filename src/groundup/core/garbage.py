"""How often Python looks for cycles of objects that nobody holds."""

import atexit
import gc

# Numbers of new objects, and of collections, before the next. With Python's own (700, 10, 10) it looks through all objects again
# and again while modules are imported: a fifth of torch's import, and a tenth of the tiny recipe's processor time (AMD EPYC).
SELDOM = (50_000, 20, 50)


def collect_seldom() -> None:
    """For a process that is groundup's own, not for a library's user.

    At its end, when all memory goes back anyway, it looks no more: with torch imported that takes .4 s (AMD EPYC).
    """
    gc.set_threshold(*SELDOM)
    atexit.register(gc.freeze)

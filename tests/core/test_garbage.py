import subprocess
import sys

PROGRAM = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # what is registered first is called last
from groundup.core.garbage import SELDOM, collect_seldom
collect_seldom()
print(gc.get_threshold() == SELDOM and not gc.get_freeze_count())
"""


def test_a_process_of_ours_looks_for_cycles_seldom_and_not_at_its_end():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]

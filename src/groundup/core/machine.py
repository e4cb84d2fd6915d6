"""The machine's processor, cores, memory and system, to be shown with figures that depend on them."""

import os
import platform
from functools import cache
from pathlib import Path

from groundup.core.executor import cores


@cache
def machine() -> dict[str, str | float]:
    """{"processor", "cores", "memory_gb", "system"}: cores that this process may use, memory of the whole machine."""
    return {
        "processor": processor_name(),
        "cores": cores(),
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor_name() -> str:
    """The processor's own name, for tables of measurements."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    """0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0

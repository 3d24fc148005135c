"""Peak memory of a stretch of code in this process, above what was there before it.

On Linux the kernel keeps the high-water mark of resident memory (``VmHWM``), and writing 5 to ``clear_refs`` sets it
back. Memory that the C allocator holds free is given back first, so that it does not count as there already. Tensors
above 32 MB are mapped and unmapped one by one, so they are counted exactly; smaller ones to some ten MB. On a GPU it
is torch's own account of its allocations.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Starts to watch when it is made.

    Args:
        device: Whose memory; a CPU's needs Linux.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            ctypes.CDLL(None).malloc_trim(0)
            _CLEAR.write_text("5")
            self.before = _resident("VmRSS")

    def rise(self) -> int:
        """Bytes by which the peak until now lies above the start."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _resident("VmHWM") - self.before


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024

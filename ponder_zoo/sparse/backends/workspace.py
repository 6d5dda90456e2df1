"""Memory that survives from one convolution to the next, and memory whose place others can take.

On CPU fresh buffers of this size cost a system call and page faults in every convolution. Other devices have a caching
allocator.
"""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor

# torch asks for memory at multiples of 64 bytes, and glibc (2.36) looks for 96 bytes more than that to cut it from. So
# the place of a freed tensor fits no other of its size, and a training step, whose features have the same few sizes all
# along, grows past it. With these bytes at the end it fits: 1080 to 1090 instead of 1196 to 1331 MiB for SparseUNet-34
# and a thin scene (`python -m benchmarks sparse_unet/memory`, 2026-11, 2 CPU cores).
SPARE_BYTES = 128


class _Workspace:
    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}


class _Local(threading.local):
    def __init__(self) -> None:
        self.workspace = _Workspace()
        _WORKSPACES.add(self.workspace)


_WORKSPACES: weakref.WeakSet[_Workspace] = weakref.WeakSet()  # of all threads
_LOCAL = _Local()


def scratch(name: str, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Uninitialized memory that this thread's next call with the same name overwrites."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    size = shape[0] * shape[1]
    buffers = _LOCAL.workspace.buffers
    buffer = buffers.get((name, like.dtype))
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside it
            buffer = torch.empty(size, dtype=like.dtype)
        buffers[name, like.dtype] = buffer
    return buffer[:size].view(shape)


def roomy_empty(shape: tuple[int, int], like: Tensor) -> Tensor:
    """Uninitialized memory whose place tensors of the same shape can take when it is freed; not a view."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    spare = SPARE_BYTES // like.element_size()
    return like.new_empty(shape[0] * shape[1] + spare).resize_(shape)


def release_scratch() -> None:
    """Free the scratch memory of all threads (some 30 MB each). Not while a convolution runs."""
    for workspace in list(_WORKSPACES):
        workspace.buffers.clear()

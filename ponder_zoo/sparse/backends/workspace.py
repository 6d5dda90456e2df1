"""Memory that survives from one convolution to the next.

On CPU fresh buffers of this size cost a system call and page faults in every convolution. Other devices have a caching
allocator.
"""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor


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


def release_scratch() -> None:
    """Free the scratch memory of all threads (some 30 MB each). Not while a convolution runs."""
    for workspace in list(_WORKSPACES):
        workspace.buffers.clear()

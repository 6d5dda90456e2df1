"""Features of many point clouds through CUDA graphs: a small scene takes longer to launch than to compute."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..layers.norms import Prompt
from ..sparse import SparseTensor
from ..sparse.cuda_graph import CapturedForward
from ..structures import PointBatch
from .sparse_unet import SparseUNet


class CapturedFeatures:
    """`model.forward_features` for inference, with all kernels after the kernel maps launched as one CUDA graph.

    Graphs are captured as needed and replayed for every batch that fits into one (`sparse.cuda_graph`). On a GPU the
    model needs backend="triton". On a CPU, where there are no graphs, the same code runs on the padded tensors.

    Args:
        model: in eval mode. Its weights may change in place, but not be replaced.
        max_graphs: that are kept for each condition; each holds the memory of a forward pass.

    Example:
        >>> model = SparseUNet(3, channels=(8,) * 8, depths=(1,) * 8, stem_channels=8).eval()
        >>> points = PointBatch(torch.rand(50, 3), torch.rand(50, 3), torch.tensor([20, 50]))
        >>> CapturedFeatures(model)(points).feat.shape
        torch.Size([50, 8])
    """

    def __init__(self, model: SparseUNet, *, max_graphs: int = 4) -> None:
        self.model = model
        self.max_graphs = max_graphs
        self._captured: dict[tuple[int, ...], tuple[Prompt | None, CapturedForward]] = {}

    @torch.no_grad()
    def __call__(self, points: PointBatch) -> PointBatch:
        """The same points with features (N, num_features)."""
        if self.model.training:
            raise ValueError(
                "Expected a model in eval mode, got one in train mode. Call model.eval() before capturing."
            )
        x, row, prompt = self.model._prepare(points)
        if prompt is not None and prompt.scene_group is not None:
            raise ValueError(
                f"A graph has the norms of one condition, got a batch with {len(prompt.conditions)}: "
                f"{points.condition}. Pass scenes of one condition at a time."
            )
        kept, captured = self._of_condition(prompt)
        if kept is not None and prompt is not None:
            kept.context.copy_(prompt.context)  # graphs read it where it was when they were captured
        return replace(points, feat=captured(x).index_select(0, row))

    def _of_condition(self, prompt: Prompt | None) -> tuple[Prompt | None, CapturedForward]:
        key = () if prompt is None else prompt.conditions
        if key not in self._captured:

            def forward(x: SparseTensor) -> Tensor:
                *_, last = self.model._stages(x, prompt)
                return last.feat

            self._captured[key] = prompt, CapturedForward(forward, max_graphs=self.max_graphs)
        return self._captured[key]

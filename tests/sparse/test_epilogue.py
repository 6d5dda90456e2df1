"""What follows a convolution: in one pass over its result, or after it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ponder_zoo.layers.blocks import ConvNorm, ResidualBlock
from ponder_zoo.layers.norms import BatchNorm, Prompt, PromptDrivenNorm
from ponder_zoo.sparse import DownConv3d, Epilogue, SparseTensor, SubMConv3d, voxelize
from ponder_zoo.sparse.backends import torch as backend
from ponder_zoo.sparse.kernel_map import submanifold_map


def sparse_input(channels: int, dtype: torch.dtype = torch.float64) -> SparseTensor:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 5, (90, 3), generator=generator)
    voxels, _ = voxelize(cells, torch.arange(90) // 45, 2)
    return SparseTensor(torch.randn(len(voxels), channels, generator=generator, dtype=dtype), voxels)


def trained(norm: torch.nn.Module) -> torch.nn.Module:
    """Away from its initial values, in eval mode and float64."""
    generator = torch.Generator().manual_seed(1)
    for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
        if value.is_floating_point():
            value.data = torch.rand(value.shape, generator=generator) + 0.1 * ("var" in name)
    return norm.double().eval()


def one_prompt(groups: int) -> Prompt:
    context = torch.randn(groups, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Prompt((1,), context) if groups == 1 else Prompt((1, 0), context, torch.tensor([0, 1]))


@pytest.mark.parametrize("channels", [3, 12])  # the stem's form with zeros, and lists of pairs
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_pass_gives_the_values_of_several(channels: int, dtype: torch.dtype) -> None:
    x = sparse_input(channels, dtype)
    kmap, weight = submanifold_map(x.voxels, 3), torch.randn(7, 3, 3, 3, channels).to(dtype)
    residual = torch.randn(len(x), 7).to(dtype)
    plain = backend.conv(x.feat, weight, kmap)
    scale, shift = torch.rand(7), torch.randn(7)
    for epilogue in (
        Epilogue(scale, shift, residual, relu=True),
        Epilogue(scale, shift),
        Epilogue(shift=shift, relu=True),
        Epilogue(residual=residual),
        Epilogue(),
    ):
        torch.testing.assert_close(backend.conv(x.feat, weight, kmap, epilogue), epilogue.apply(plain))
    with pytest.raises(ValueError, match=r"`residual` of the output's shape .*, 7\), got .*, 6\)"):
        backend.conv(x.feat, weight, kmap, Epilogue(residual=residual[:, 1:]))


@pytest.mark.parametrize("prompted", [0, 1, 2])  # conditions in the batch; 0 for plain norms
@pytest.mark.parametrize("make", ["down", "same", "residual", "shortcut"])
def test_blocks_give_the_same_in_inference_and_with_gradients(make: str, prompted: int) -> None:
    def norm_layer(width: int) -> torch.nn.Module:
        return PromptDrivenNorm(width, num_conditions=2, context_dim=4) if prompted else BatchNorm(width)

    blocks = {
        "down": lambda: ConvNorm(DownConv3d(9, 6, backend="torch"), norm_layer(6)),
        "same": lambda: ConvNorm(SubMConv3d(9, 6, backend="torch"), norm_layer(6)),
        "residual": lambda: ResidualBlock(9, 9, norm_layer=norm_layer, backend="torch"),
        "shortcut": lambda: ResidualBlock(9, 6, norm_layer=norm_layer, backend="torch"),
    }
    block, prompt, x = trained(blocks[make]()), one_prompt(prompted) if prompted else None, sparse_input(9)
    applied: list[Tensor] = []
    for norm in block.modules():
        if isinstance(norm, BatchNorm):
            norm.register_forward_hook(lambda *args: applied.append(args[2]))
    expected = block(x, prompt=prompt).feat
    assert expected.requires_grad
    applied.clear()
    with torch.inference_mode():
        found = block(x, prompt=prompt).feat
    torch.testing.assert_close(found, expected.detach(), atol=1e-12, rtol=1e-12)
    if prompted == 0:
        assert len(applied) == (make == "shortcut")  # only the shortcut's norm is a pass of its own

"""Norms over points against torch's own, per condition and over processes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from ponder_zoo.layers.blocks import ResidualBlock
from ponder_zoo.layers.norms import BatchNorm, Prompt, PromptDrivenNorm, keep_statistics, synchronize_norms
from ponder_zoo.sparse import SparseTensor


def prompt_of(*conditions: int, scene_group: list[int] | None = None) -> Prompt:
    context = torch.randn(len(conditions), 6, generator=torch.Generator().manual_seed(7))
    return Prompt(conditions, context, None if scene_group is None else torch.tensor(scene_group))


def make_norm(affine: bool = True) -> PromptDrivenNorm:
    norm = PromptDrivenNorm(4, num_conditions=3, context_dim=6, affine=affine)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def test_batch_norm_is_torchs_with_the_official_constants() -> None:
    ours, theirs = BatchNorm(4), nn.BatchNorm1d(4, eps=1e-3, momentum=0.01)
    x = 3 * torch.randn(50, 4) + 2
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_a_single_row_uses_the_running_statistics_and_keeps_them() -> None:
    norm = BatchNorm(4)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    x = torch.randn(1, 4)
    out = norm(x)
    torch.testing.assert_close(dict(norm.named_buffers()), before)
    torch.testing.assert_close(out, norm.eval()(x))


def test_keep_statistics_normalizes_alike_and_leaves_buffers_alone() -> None:
    norm, x = BatchNorm(4), torch.randn(20, 4)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    with keep_statistics():
        first = norm(x)
    torch.testing.assert_close(dict(norm.named_buffers()), before)
    assert first.equal(norm(x))
    assert norm.num_batches_tracked == 1


def test_low_precision_input_is_normalized_in_float32() -> None:
    x = (1000 + torch.randn(4000, 4)).bfloat16()  # its variance drowns in bfloat16
    out = BatchNorm(4)(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), BatchNorm(4)(x.float()), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("affine", [True, False])
def test_prompt_driven_norm_shifts_first_and_scales_by_one_plus(affine: bool) -> None:
    norm, prompt, x = make_norm(affine), prompt_of(1), torch.randn(30, 4)
    shift, scale = F.linear(F.silu(prompt.context[0]), norm.modulation.weight, norm.modulation.bias).split(4)
    mean, var = x.mean(0), x.var(0, unbiased=False)
    expected = (x - mean) / (var + 1e-3).sqrt()
    if affine:
        expected = expected * norm.norms[1].weight + norm.norms[1].bias
    torch.testing.assert_close(norm(x, prompt, torch.zeros(30).long()), expected * (1 + scale) + shift)


def test_scenes_of_several_conditions_are_normalized_as_if_alone() -> None:
    batch = torch.arange(4).repeat_interleave(10)
    x = torch.randn(40, 4)
    together, apart = make_norm(), make_norm()
    apart.load_state_dict(together.state_dict())
    prompt = prompt_of(0, 2, scene_group=[0, 1, 1, 0])
    out = together(x, prompt, batch)
    for group, condition in enumerate(prompt.conditions):
        rows = torch.isin(batch, torch.tensor([[0, 3], [1, 2]][group]))
        single = Prompt((condition,), prompt.context[group : group + 1])
        torch.testing.assert_close(out[rows], apart(x[rows], single, batch[rows]))
    torch.testing.assert_close(dict(together.named_buffers()), dict(apart.named_buffers()))
    assert together.norms[1].num_batches_tracked == 0


def test_a_condition_whose_scenes_are_empty_is_left_alone() -> None:
    norm, x = make_norm(), torch.randn(10, 4)
    out = norm(x, prompt_of(0, 1, scene_group=[0, 1]), torch.zeros(10).long())
    assert out.isfinite().all()
    assert norm.norms[1].num_batches_tracked == 0


def test_only_the_condition_in_use_gets_gradients() -> None:
    norm = make_norm()
    norm(torch.randn(10, 4), prompt_of(2), torch.zeros(10).long()).square().sum().backward()
    assert [module.weight.grad is None for module in norm.norms] == [True, True, False]


@pytest.mark.parametrize("out_chans", [6, 9])
def test_residual_block_is_its_formula(out_chans: int) -> None:
    block = ResidualBlock(6, out_chans, norm_layer=BatchNorm, backend="torch").eval()
    cells = torch.randint(0, 5, (60, 3))
    x, _ = SparseTensor.from_points(torch.randn(60, 6), cells, torch.zeros(60).long(), 1)
    hidden = x.with_feat(block.norm1(block.conv1(x).feat).relu())
    shortcut = x.feat if out_chans == 6 else block.shortcut_norm(x.feat @ block.shortcut.weight.t())
    expected = (block.norm2(block.conv2(hidden).feat) + shortcut).relu()
    torch.testing.assert_close(block(x).feat, expected)


# Over processes -------------------------------------------------------------------------------------------------------


def _run_process(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    case = torch.load(Path(folder) / "case.pt")
    norm = make_norm()
    norm.load_state_dict(case["state"])
    synchronize_norms(norm)
    rows = case["process"] == rank
    x = case["x"][rows].requires_grad_()
    # Process 0 has conditions 0 and 2, process 1 only condition 0.
    prompt = (
        Prompt((0, 2), case["context"], torch.tensor([0, 1, 0])) if rank == 0 else Prompt((0,), case["context"][:1])
    )
    out = norm(x, prompt, case["batch"][rows])
    (out * case["cotangent"][rows]).sum().backward()
    torch.save({"out": out, "grad": x.grad, "state": norm.state_dict()}, Path(folder) / f"{rank}.pt")
    dist.barrier()  # gloo aborts a process that leaves while the other still talks to it
    dist.destroy_process_group()


def test_synchronized_norms_see_all_processes_and_conditions_that_one_lacks(tmp_path: Path) -> None:
    batch = torch.tensor([0] * 9 + [1] * 7 + [2] * 11)
    process = (batch == 2).long()
    norm = make_norm()
    x, cotangent = torch.randn(27, 4), torch.randn(27, 4)
    prompt = prompt_of(0, 2, scene_group=[0, 1, 0])
    case = {"state": norm.state_dict(), "x": x, "batch": batch, "process": process, "cotangent": cotangent}
    torch.save(case | {"context": prompt.context}, tmp_path / "case.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_run_process, args=(port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    leaf = x.clone().requires_grad_()
    expected = norm(leaf, prompt, batch)
    (expected * cotangent).sum().backward()

    def gather(name: str) -> Tensor:
        return torch.cat([parts[0][name], parts[1][name]])

    assert leaf.grad is not None
    torch.testing.assert_close(gather("out"), expected)
    torch.testing.assert_close(gather("grad"), leaf.grad)
    torch.testing.assert_close(parts[0]["state"], norm.state_dict())
    torch.testing.assert_close(parts[1]["state"], norm.state_dict())

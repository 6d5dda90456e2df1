"""The Triton kernels of sparse convolution; what they compute and in which layout, without choices of block sizes.

All of them loop over a neighbour table (K, N) int32 with -1 for "no voxel". Shapes that change from batch to batch are
run-time arguments, so a kernel is compiled once per block size and precision and not once per layer or batch.
"""

# pyright does not know how triton compiles: that launches take constants, and that a loaded value is a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _operand(value, UPCAST: tl.constexpr):
    # The interpreter's product of bfloat16 is garbage (up to triton 3.9); float32 operands give the exact products.
    return value.to(tl.float32) if UPCAST else value


@triton.jit
def _epilogue(
    acc, at, cols, mask, col_mask, scale, shift, residual,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Scale and shift per column, then add the residual, then ReLU; `at` are the places in the output."""
    if SCALE:
        acc = acc * tl.load(scale + cols, mask=col_mask, other=0.0).to(acc.dtype)
    if SHIFT:
        acc = acc + tl.load(shift + cols, mask=col_mask, other=0.0).to(acc.dtype)
    if RESIDUAL:
        acc = acc + tl.load(residual + at, mask=mask, other=0.0).to(acc.dtype)
    if RELU:
        acc = tl.maximum(acc, 0.0)
    return acc


@triton.jit(do_not_specialize=["num_out", "volume", "splits"])
def conv_kernel(
    feat, weight, out, table, order, offsets, counts, scale, shift, residual,
    num_out, volume, splits, chans_in, chans_out, step_offset, step_in, step_out,
    SPLIT: tl.constexpr, EVEN: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    ROWS: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr,
):  # fmt: skip
    """out[order[j]] = sum over k of feat[table[k, j]] @ weight[k]: ROWS output rows and OUTS channels per program.

    The reduction runs over the offsets that a block of rows has (`offsets`, (blocks, volume), of which `counts` are
    valid) and, within one, over INS input channels at a time, as one flat loop that the compiler can pipeline.
    With SPLIT each program of the second grid axis takes a share of it, and `out` is (splits, num_out, chans_out).
    """
    columns = tl.cdiv(chans_out, OUTS)
    # Programs that share rows are neighbours, so that the second one finds the gathered rows in the L2 cache.
    block = tl.program_id(0) // columns
    split = tl.program_id(1)
    place = block * ROWS + tl.arange(0, ROWS)
    valid = place < num_out
    cols = (tl.program_id(0) % columns) * OUTS + tl.arange(0, OUTS)
    col_mask = cols < chans_out

    parts = tl.cdiv(chans_in, INS)
    steps = tl.load(counts + block) * parts
    share = tl.cdiv(steps, splits)
    begin = split * share
    end = tl.minimum(begin + share, steps)

    acc = tl.zeros((ROWS, OUTS), dtype=ACC)
    for step in range(begin, end):
        offset = tl.load(offsets + block * volume + step // parts)
        ins = (step % parts) * INS + tl.arange(0, INS)
        if WIDE:
            source = tl.load(table + offset.to(tl.int64) * num_out + place, mask=valid, other=-1).to(tl.int64)
        else:
            source = tl.load(table + offset * num_out + place, mask=valid, other=-1)
        a_at = feat + source[:, None] * chans_in + ins[None, :]
        w_at = weight + offset * step_offset + ins[:, None] * step_in + cols[None, :] * step_out
        if EVEN:
            a = tl.load(a_at, mask=source[:, None] >= 0, other=0.0)
            w = tl.load(w_at, mask=col_mask[None, :], other=0.0)
        else:
            a = tl.load(a_at, mask=(source[:, None] >= 0) & (ins[None, :] < chans_in), other=0.0)
            w = tl.load(w_at, mask=(ins[:, None] < chans_in) & col_mask[None, :], other=0.0)
        acc = tl.dot(
            _operand(a, UPCAST), _operand(w, UPCAST), acc, input_precision=PRECISION, out_dtype=ACC
        )  # fmt: skip

    rows = tl.load(order + place, mask=valid, other=0)
    rows = rows.to(tl.int64) if WIDE else rows
    at = rows[:, None] * chans_out + cols[None, :]
    mask = valid[:, None] & col_mask[None, :]
    if SPLIT:
        tl.store(out + split.to(tl.int64) * num_out * chans_out + at, acc, mask=mask)
    else:
        acc = _epilogue(
            acc, at, cols[None, :], mask, col_mask[None, :], scale, shift, residual, SCALE, SHIFT, RESIDUAL, RELU
        )
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["splits"])
def sum_splits_kernel(
    partial, out, scale, shift, residual, numel, chans_out, splits,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the partial outputs of `conv_kernel` in a fixed order, then its epilogue. Flat over rows and columns."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numel
    part = partial + at
    acc = tl.load(part, mask=mask, other=0.0)
    for _ in range(1, splits):
        part += numel
        acc += tl.load(part, mask=mask, other=0.0)
    acc = _epilogue(acc, at, at % chans_out, mask, mask, scale, shift, residual, SCALE, SHIFT, RESIDUAL, RELU)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_out", "chunk"])
def weight_gradient_kernel(
    feat, grad, out, table, pairs, counts, num_out, chunk, chans_in, chans_out, step_offset, step_in, step_out, numel,
    SPLIT: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr, ROWS: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr,
):  # fmt: skip
    """out[split, :, k] = sum over a chunk of offset k's pairs (i, j) of grad[j]^T feat[i].

    One program per block of (output channels, input channels), offset and chunk of `chunk` pairs, ROWS pairs at a time.
    Chunks past the end of an offset's pairs are neither computed nor written; without SPLIT they are written as zero.
    """
    columns = tl.cdiv(chans_in, INS)
    outs = (tl.program_id(0) // columns) * OUTS + tl.arange(0, OUTS)
    ins = (tl.program_id(0) % columns) * INS + tl.arange(0, INS)
    offset = tl.program_id(1)
    split = tl.program_id(2)
    count = tl.load(counts + offset)
    begin = split * chunk
    if (begin < count) | (not SPLIT):
        row = offset.to(tl.int64) * num_out if WIDE else offset * num_out
        end = tl.minimum(begin + chunk, count)
        acc = tl.zeros((OUTS, INS), dtype=ACC)
        for first in range(begin, end, ROWS):
            place = first + tl.arange(0, ROWS)
            valid = place < end
            target = tl.load(pairs + row + place, mask=valid, other=0)
            source = tl.load(table + row + target, mask=valid, other=0)
            if WIDE:
                target = target.to(tl.int64)
                source = source.to(tl.int64)
            g_at = grad + target[None, :] * chans_out + outs[:, None]  # (OUTS, ROWS)
            f_at = feat + source[:, None] * chans_in + ins[None, :]  # (ROWS, INS)
            if EVEN:
                g = tl.load(g_at, mask=valid[None, :], other=0.0)
                f = tl.load(f_at, mask=valid[:, None], other=0.0)
            else:
                g = tl.load(g_at, mask=valid[None, :] & (outs[:, None] < chans_out), other=0.0)
                f = tl.load(f_at, mask=valid[:, None] & (ins[None, :] < chans_in), other=0.0)
            acc = tl.dot(
                _operand(g, UPCAST), _operand(f, UPCAST), acc, input_precision=PRECISION, out_dtype=ACC
            )  # fmt: skip
        at = outs[:, None] * step_out + offset * step_offset + ins[None, :] * step_in
        mask = (outs[:, None] < chans_out) & (ins[None, :] < chans_in)
        tl.store(out + split.to(tl.int64) * numel + at, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["chunk"])
def sum_weight_gradient_kernel(
    partial, out, counts, chunk, chans_in, chans_out, step_offset, step_in, step_out, numel, BLOCK: tl.constexpr
):
    """Add the chunks that `weight_gradient_kernel` wrote, in order: one program per block of entries of an offset."""
    offset = tl.program_id(1)
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = entry < chans_in * chans_out
    at = (entry // chans_in) * step_out + offset * step_offset + (entry % chans_in) * step_in
    acc = tl.zeros((BLOCK,), dtype=partial.dtype.element_ty)
    part = partial + at
    for _ in range(0, tl.cdiv(tl.load(counts + offset), chunk)):
        acc += tl.load(part, mask=mask, other=0.0)
        part += numel
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_out"])
def sort_keys_kernel(table, bits, keys, num_out, VOLUME: tl.constexpr, BLOCK: tl.constexpr):
    """keys[j] = place of row j's set of offsets in the order of the Gray code; offset k is bit bits[k], -1 for none."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = place < num_out
    code = tl.zeros((BLOCK,), dtype=tl.int32)
    at = table + place
    for k in range(0, VOLUME):
        bit = tl.load(bits + k)
        present = tl.load(at, mask=valid & (bit >= 0), other=-1) >= 0
        code |= tl.where(present, 1 << tl.maximum(bit, 0), 0)
        at += num_out
    code ^= code >> 1
    code ^= code >> 2
    code ^= code >> 4
    code ^= code >> 8
    code ^= code >> 16
    tl.store(keys + place, code, mask=valid)


@triton.jit(do_not_specialize=["num_out"])
def list_offsets_kernel(
    table, offsets, counts, num_out, VOLUME: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr
):
    """The offsets that occur in each block of ROWS rows, ascending: (blocks, VOLUME), of which `counts` are valid."""
    block = tl.program_id(0)
    place = block * ROWS + tl.arange(0, ROWS)
    total = 0
    for first in range(0, VOLUME, GROUP):
        k = first + tl.arange(0, GROUP)
        row = k.to(tl.int64) * num_out if WIDE else k * num_out
        mask = (k < VOLUME)[:, None] & (place < num_out)[None, :]
        found = tl.max(tl.load(table + row[:, None] + place[None, :], mask=mask, other=-1), axis=1) >= 0  # (GROUP,)
        rank = tl.cumsum(found.to(tl.int32), axis=0)
        tl.store(offsets + block * VOLUME + total + rank - 1, k, mask=found)
        total += tl.sum(found.to(tl.int32), axis=0)
    tl.store(counts + block, total)


@triton.jit(do_not_specialize=["num_out"])
def list_pairs_kernel(table, rank, pairs, num_out, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """pairs[k, rank[k, j] - 1] = j for the rows j that have offset k; `rank` counts them."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offset = tl.program_id(1)
    row = offset.to(tl.int64) * num_out if WIDE else offset * num_out
    valid = place < num_out
    present = tl.load(table + row + place, mask=valid, other=-1) >= 0
    position = tl.load(rank + row + place, mask=present, other=1) - 1
    tl.store(pairs + row + position, place, mask=present)


@triton.jit(do_not_specialize=["num", "rounds"])
def search_kernel(
    key, table, num, rounds, size_y, size_z,
    REACH: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """table[k, j] = row of the voxel at offset k from voxel j, by binary search in the ascending keys; -1 if none.

    One program per block of voxels and (x, y) column: the neighbours along z follow each other in the sorted keys, so
    the search is for the lowest one and the others are found by stepping.
    """
    SIZE: tl.constexpr = 2 * REACH + 1
    dtype = key.dtype.element_ty
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = place < num
    column = tl.program_id(1)
    dx = (column // SIZE - REACH).to(dtype)
    dy = (column % SIZE - REACH).to(dtype)
    wanted = tl.load(key + place, mask=valid, other=0) + (dx * size_y + dy) * size_z - REACH
    low = tl.zeros((BLOCK,), dtype=tl.int32)
    high = low + num
    for _ in range(0, rounds):
        middle = (low + high) // 2
        open_ = low < high
        less = tl.load(key + middle, mask=valid & open_, other=0) < wanted
        low = tl.where(open_ & less, middle + 1, low)
        high = tl.where(open_ & (less == 0), middle, high)
    for dz in range(0, SIZE):
        found = valid & (low < num)
        found = found & (tl.load(key + low, mask=found, other=0) == wanted + dz)
        k = column * SIZE + dz
        row = k.to(tl.int64) * num if WIDE else k * num
        tl.store(table + row + place, tl.where(found, low, -1), mask=valid)
        low += found.to(tl.int32)

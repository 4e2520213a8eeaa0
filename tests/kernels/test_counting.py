"""The counter of bytes and matrix FLOPs, on kernels whose counts are known."""

import pytest
import torch
import triton
import triton.language as tl

from longrec.kernels.counting import count_work

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="kernels are compiled here")


@triton.jit
def _matmul_kernel(a_ptr, b_ptr, out_ptr, rows, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m = tl.program_id(0) * M + tl.arange(0, M)
    n, k = tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :], mask=(m < rows)[:, None], other=0.0)
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    tl.store(out_ptr + m[:, None] * N + n[None, :], tl.dot(a, b), mask=(m < rows)[:, None])


@triton.jit
def _gather_kernel(x_ptr, index_ptr, total_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    picked = tl.load(x_ptr + tl.load(index_ptr + i // 8))  # each address named by 8 lanes
    tl.atomic_add(total_ptr, tl.sum(picked, axis=0))


@pytest.mark.parametrize("values", [True, False])
def test_masked_lanes_do_not_count_and_reloads_do(values):
    rows, n, k = 19, 16, 32
    a, b, out = torch.randn(rows, k), torch.randn(k, n), torch.zeros(rows, n)
    with count_work(values=values) as count:
        _matmul_kernel[(2,)](a, b, out, rows, M=16, N=n, K=k)
    assert count.bytes_loaded == 4 * (rows * k + 2 * k * n)  # both programs read all of b
    assert count.bytes_stored == 4 * rows * n
    assert count.flops == 2 * 2 * 16 * n * k  # the 13 masked rows are computed all the same
    assert count.grids == [(2, 1, 1)]
    assert count.programs == 2
    assert torch.allclose(out, a @ b, atol=1e-5) == values


def test_lanes_of_one_load_that_share_an_address_count_once():
    x, total = torch.arange(10.0), torch.zeros(1)
    index = torch.tensor([3, 1, 9, 1], dtype=torch.int32)
    with count_work() as count:
        _gather_kernel[(1,)](x, index, total, N=32)
    assert total.item() == 8 * (3 + 1 + 9 + 1)
    assert count.bytes_loaded == 4 * 4 + 3 * 4 + 4  # four indices, three distinct values, the atomic's read
    assert count.bytes_stored == 4


@triton.jit
def _masked_twice_kernel(weight_ptr, x_ptr, out_ptr, count, N: tl.constexpr):
    i = tl.arange(0, N)
    weight = tl.load(weight_ptr + i, mask=i < count, other=float("-inf"))
    x = tl.load(x_ptr + i, mask=weight > float("-inf"), other=0.0)
    tl.store(out_ptr + i, x, mask=i < count)


@pytest.mark.parametrize("values", [True, False])
def test_what_a_masked_lane_reads_hides_later_loads_too(values):
    weight, x, out = torch.ones(16), torch.ones(16), torch.empty(16)
    with count_work(values=values) as count:
        _masked_twice_kernel[(1,)](weight, x, out, 5, N=16)
    assert count.bytes_loaded == 4 * (5 + 5)


def test_nothing_is_counted_after_the_block():
    x = torch.randn(16, 16)
    with count_work() as count:
        pass
    _matmul_kernel[(1,)](x, x, torch.empty(16, 16), 16, M=16, N=16, K=16)
    assert (count.bytes_moved, count.flops, count.grids) == (0, 0, [])

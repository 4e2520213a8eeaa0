"""The interpreter, corrected, does in bfloat16 and float8 what PyTorch does."""

import pytest
import torch
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="kernels are compiled here")


@triton.jit
def _dot_kernel(a_ptr, b_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    tl.store(out_ptr + m[:, None] * N + n[None, :], tl.dot(a, b))


@triton.jit
def _cast_kernel(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(out_ptr.dtype.element_ty))


def test_a_dot_of_bfloat16_multiplies_values_and_not_bit_patterns():
    a, b = torch.randn(16, 32).bfloat16(), torch.randn(32, 16).bfloat16()
    out = torch.empty(16, 16)
    _dot_kernel[(1,)](a, b, out, M=16, N=16, K=32)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_conversion_rounds_to_nearest_even(dtype):
    # 1.99999: the mantissa's carry goes into the exponent; 1 + 2^-8: a tie in bfloat16
    x = torch.cat(
        [torch.tensor([1.99999, 1 + 2**-8, 1 + 3 * 2**-8, -0.0, 0.0, 3.1e-3, 100.0, -17.3]), torch.randn(120)]
    )
    narrow, wide = torch.empty(128, dtype=dtype), torch.empty(128)
    _cast_kernel[(1,)](x, narrow, N=128)
    _cast_kernel[(1,)](narrow, wide, N=128)
    torch.testing.assert_close(wide, x.to(dtype).float(), rtol=0, atol=0)


def test_float8_saturates():
    narrow = torch.empty(2, dtype=torch.float8_e4m3fn)
    _cast_kernel[(1,)](torch.tensor([1e4, -1e4]), narrow, N=2)
    assert narrow.float().tolist() == [448.0, -448.0]

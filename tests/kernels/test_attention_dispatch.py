"""The public operator: the CPU bodies agree with the reference, the kernels' forward and backward form one node."""

import pytest
import torch

from longrec.errors import ArgumentError
from longrec.kernels import PagedMemory, segment_attention
from longrec.kernels.attention import segment_attention_with_gradient
from longrec.kernels.reference import segment_attention as reference

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels' own tests run on the GPU")


def make(counts=(5, 1, 12), past=None, dtype=torch.float64, heads=(4, 2), head_dim=16, page_size=16):
    torch.manual_seed(0)
    total = sum(counts)
    q, k, v = (torch.randn(total, n, head_dim, dtype=dtype) for n in (heads[0], heads[1], heads[1]))
    cu_seqlens = torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32)
    if past is None:
        return (q, k, v, cu_seqlens), None
    pages = [-(-n // page_size) for n in past]
    held = torch.randn(2, sum(pages), page_size, heads[1], head_dim, dtype=dtype)
    indptr = torch.tensor([0, *torch.tensor(pages).cumsum(0)], dtype=torch.int32)
    memory = PagedMemory(
        held[0], held[1], indptr, torch.randperm(sum(pages)).int(), torch.tensor(past, dtype=torch.int32)
    )
    return (q, k, v, cu_seqlens), memory


@pytest.mark.parametrize("window", [1, 4, 100])
def test_the_packed_body_agrees_with_the_reference_and_so_do_its_gradients(window):
    tensors, _ = make()
    for tensor in tensors[:3]:
        tensor.requires_grad_()
    out, lse2 = segment_attention(*tensors, window=window)
    expected, expected_lse2 = reference(*tensors, window=window)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(lse2, expected_lse2, rtol=0, atol=1e-10)
    weight = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad((out * weight).sum(), tensors[:3]),
        torch.autograd.grad((expected * weight).sum(), tensors[:3]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("memory_gradient", [False, True])
def test_memory_has_a_gradient_only_where_it_is_asked_for(memory_gradient):
    tensors, memory = make(past=(3, 20, 0))
    memory.k_pages.requires_grad_()
    tensors[0].requires_grad_()
    out, _ = segment_attention(*tensors, window=9, memory=memory, memory_gradient=memory_gradient)
    out.sum().backward()
    assert (memory.k_pages.grad is not None) == memory_gradient


@interpreted
@pytest.mark.parametrize("memory_gradient", [False, True])
def test_the_kernels_are_differentiable(memory_gradient):
    tensors, memory = make(past=(3, 20, 0), dtype=torch.float32)
    leaves = [*tensors[:3], *((memory.k_pages, memory.v_pages) if memory_gradient else ())]
    for leaf in leaves:
        leaf.requires_grad_()
    arguments = {"window": 9, "memory": memory}
    out, _ = segment_attention_with_gradient(*tensors, memory_gradient=memory_gradient, **arguments)
    expected, _ = reference(*tensors, **arguments)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), leaves)
    for ours, theirs in zip(found, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, c: (q, k[:-1], v, c), r"k: expected \[T, Hkv, D\]"),
        (lambda q, k, v, c: (q, k[:, :1].expand(-1, 3, -1), v, c), r"k: expected .*Hq a multiple of Hkv"),
        (lambda q, k, v, c: (q, k, v[..., :8], c), r"v: expected k's shape"),
        (lambda q, k, v, c: (q, k, v, c.long()), r"cu_seqlens: expected int32, got int64"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    tensors, _ = make()
    with pytest.raises(ArgumentError, match=message):
        segment_attention(*change(*tensors), window=4)

"""What doesn't fit `segment_attention` is named before anything is launched."""

import pytest
import torch

from longrec.errors import ArgumentError
from longrec.kernels import segment_attention
from longrec.kernels.attention_cases import AttentionCase
from longrec.kernels.segment_attention import AttentionBuffers
from longrec.kernels.segment_attention import segment_attention as segment_attention_triton

CASE = AttentionCase((3, 5), past=(20, 33), heads=(4, 2))


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def changed_memory(**changes):
    return lambda a: a | {"memory": a["memory"]._replace(**{name: f(a["memory"]) for name, f in changes.items()})}


SHAPES = {
    "q-rank": (lambda a: a | {"q": a["q"][0]}, r"q: expected shape \[T, Hq, D\], got \[4, 16\]"),
    "q-dtype": (lambda a: a | {"q": a["q"].double()}, r"q: expected bfloat16 or float16 or float32, got float64"),
    "k-dtype": (lambda a: a | {"k": a["k"].half()}, r"k: expected float32, got float16"),
    "v-tokens": (lambda a: a | {"v": a["v"][:-1]}, r"v: expected shape \[T=8, Hkv=2, D=16\]"),
    "device": (lambda a: a | {"k": a["k"].to("meta")}, r"k: expected device cpu, got meta"),
    "head-dim": (
        lambda a: a | {name: a[name].repeat(1, 1, 2)[..., :24].contiguous() for name in "qkv"},
        r"q: head_dim=24: expected one of \(16, 32, 64, 128, 256\).*pad",
    ),
    "heads": (lambda a: a | {"q": a["q"][:, :3].contiguous()}, r"q: Hq: expected a multiple of Hkv=2, got 3"),
    "stride-inner": (
        lambda a: a | {"q": a["q"].transpose(1, 2).contiguous().transpose(1, 2)},
        r"q: expected contiguous from dimension 2 on",
    ),
    "stride-rows": (
        lambda a: a | {"k": torch.zeros(8, 40)[:, :32].view(8, 2, 16)},
        r"k: expected strides that are multiples of 16",
    ),
    "cu-seqlens-dtype": (
        lambda a: a | {"cu_seqlens": a["cu_seqlens"].long()},
        r"cu_seqlens: expected int32, got int64",
    ),
    "cu-seqlens-none": (lambda a: a | {"cu_seqlens": int32()}, r"cu_seqlens: expected B \+ 1 offsets"),
    "window": (lambda a: a | {"window": 0}, r"window=0: expected at least 1"),
    "scale": (lambda a: a | {"scale": -1.0}, r"scale=-1.0: expected above 0"),
    "kind": (lambda a: a | {"kind": "relu"}, r"kind='relu': expected one of"),
    "page-size": (
        changed_memory(k_pages=lambda m: m.k_pages[:, :8], v_pages=lambda m: m.v_pages[:, :8]),
        r"memory.k_pages: page size 8: expected one of",
    ),
    "pages-heads": (
        changed_memory(k_pages=lambda m: m.k_pages[:, :, :1].contiguous()),
        r"memory.k_pages: expected shape \[P, S, Hkv=2, D=16\]",
    ),
    "pages-dtype": (changed_memory(v_pages=lambda m: m.v_pages.half()), r"memory.v_pages: expected float32"),
    "scales-missing": (
        changed_memory(k_pages=lambda m: m.k_pages.char(), v_pages=lambda m: m.v_pages.char()),
        r"memory.k_scale: expected scales \[P, S, Hkv\] with pages in torch.int8, got None",
    ),
    "scales-extra": (changed_memory(k_scale=lambda m: torch.ones(1)), r"memory.k_scale: expected None"),
    "lengths-users": (changed_memory(lengths=lambda m: m.lengths[:1]), r"memory.lengths: expected shape \[B=2\]"),
    "targets-dtype": (lambda a: a | {"num_targets": torch.zeros(2)}, r"num_targets: expected int32, got float32"),
}
VALUES = {
    "cu-seqlens-start": (lambda a: a | {"cu_seqlens": int32(1, 3, 8)}, r"cu_seqlens\[0\]: expected 0 at the start"),
    "cu-seqlens-falls": (lambda a: a | {"cu_seqlens": int32(0, 9, 8)}, r"cu_seqlens\[1\]: expected offsets that don't"),
    "cu-seqlens-end": (lambda a: a | {"cu_seqlens": int32(0, 3, 7)}, r"cu_seqlens\[0\]: expected 8 at the end"),
    "max-new": (lambda a: a | {"max_new": 4}, r"cu_seqlens\[1\]: expected at most max_new=4"),
    "max-memory": (lambda a: a | {"max_memory": 32}, r"memory.lengths\[1\]: expected at most max_memory=32"),
    "targets": (lambda a: a | {"num_targets": int32(0, 6)}, r"num_targets\[1\]: expected 0 to the user's new events"),
    "indptr-falls": (
        changed_memory(page_indptr=lambda m: int32(0, 6, 5)),
        r"memory.page_indptr\[1\]: expected offsets that don't fall",
    ),
    "indptr-end": (
        changed_memory(page_indptr=lambda m: int32(0, 2, 6)),
        r"memory.page_indptr\[2\]: expected offsets within page_indices",
    ),
    "page-beyond": (
        changed_memory(page_indices=lambda m: m.page_indices + len(m.k_pages)),
        r"memory.page_indices\[0\]: expected 0..6, the pages there are",
    ),
    "page-negative": (
        changed_memory(page_indices=lambda m: m.page_indices.where(m.page_indices > 0, -1)),
        r"memory.page_indices\[\d\]: expected 0..6",
    ),
    "length-beyond-table": (
        changed_memory(lengths=lambda m: m.lengths + int32(13, 0)),
        r"memory.lengths\[0\]: expected no more events than the user's pages hold",
    ),
    "length-negative": (changed_memory(lengths=lambda m: -m.lengths), r"memory.lengths\[0\]: expected 0 or more"),
}


def refuse(body, change, message, **more):
    made = CASE.make(torch.float32)
    arguments = change(dict(zip(("q", "k", "v", "cu_seqlens"), made.tensors, strict=True)) | made.keywords | more)
    out, lse2 = torch.full((8, 4, 16), torch.nan), torch.full((8, 4), torch.nan)
    with pytest.raises(ArgumentError, match=message):
        body(**arguments, buffers=AttentionBuffers(out, lse2))
    assert out.isnan().all()  # nothing was launched


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_always_checked(name, validate):
    change, message = SHAPES[name]
    refuse(segment_attention_triton, change, message, validate=validate)


@pytest.mark.parametrize("body", [segment_attention, segment_attention_triton], ids=["cpu", "kernel"])
@pytest.mark.parametrize("name", VALUES)
def test_values_are_checked(name, body):
    change, message = VALUES[name]
    refuse(body, change, message)

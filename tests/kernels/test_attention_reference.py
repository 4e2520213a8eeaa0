"""The reference of `segment_attention` against attention written out row by row, in float64."""

import math

import pytest
import torch

from longrec.kernels.attention_cases import AttentionArguments, AttentionCase
from longrec.kernels.reference import segment_attention
from longrec.kernels.types import bucket_of

CASES = [
    AttentionCase(new=(5, 1, 9)),
    AttentionCase(new=(7, 0, 4, 1), past=(19, 33, 0, 16), heads=(4, 2), window=21),
    AttentionCase(new=(3, 6), past=(18, 5), variant="silu", window=11),
    AttentionCase(new=(3, 6), past=(18, 40), heads=(2, 2), variant="position"),
    AttentionCase(new=(3, 6), past=(18, 40), variant="time"),
    AttentionCase(new=(4, 6), past=(18, 0), heads=(4, 1), variant="hstu", window=17, targets=(2, 6)),
    AttentionCase(new=(3, 6), past=(18, 5), heads=(4, 2), variant="relative", window=12),
    AttentionCase(new=(5, 6, 1), past=(18, 5, 3), variant="relative", targets=(3, 0, 1)),
    AttentionCase(new=(8, 3), past=(18, 40), targets=(5, 3), window=9),
    AttentionCase(new=(8, 3), targets=(5, 1), variant="position"),
    AttentionCase(new=(2, 3), past=(18, 40), memory_dtype="int8"),
    AttentionCase(new=(2, 3), past=(18, 40), memory_dtype="fp8", variant="silu"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_reference_is_attention_written_out(case: AttentionCase) -> None:
    arguments = case.make(torch.float64)
    out, lse2 = segment_attention(*arguments.tensors, **arguments.keywords)
    expected_out, expected_lse2 = attention_by_row(case, arguments)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, expected_out, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(lse2, expected_lse2, rtol=1e-10, atol=1e-10)


def test_rows_without_a_key_are_empty() -> None:
    arguments = AttentionCase(new=(3,), targets=(0,)).make(torch.float64)
    q, k, v, _ = arguments.tensors
    out, lse2 = segment_attention(q[:0], k[:0], v[:0], torch.zeros(3, dtype=torch.int32), window=4)
    assert out.shape == (0, 2, 16)
    assert lse2.shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variant", ["softmax", "hstu", "relative"])
def test_reference_keeps_the_dtype(variant: str, dtype: torch.dtype) -> None:
    arguments = AttentionCase(new=(3,), past=(5,), variant=variant).make(dtype)  # type: ignore[arg-type]
    out, lse2 = segment_attention(*arguments.tensors, **arguments.keywords)
    assert out.dtype == lse2.dtype == dtype


@pytest.mark.parametrize("fraction_bits", [0, 1, 3, 8])
def test_buckets_are_single_at_first_and_then_parts_of_octaves(fraction_bits: int) -> None:
    distance = torch.arange(1 << 14)
    expected = torch.tensor([log_linear(d, fraction_bits) for d in distance.tolist()])
    assert torch.equal(bucket_of(distance, fraction_bits, 1 << 20), expected)
    assert torch.equal(bucket_of(distance.int(), fraction_bits, 6), expected.clamp(max=5))


def test_buckets_never_fall_and_take_any_distance() -> None:
    distance = torch.tensor([2**k + d for k in range(24, 31) for d in (-1, 0, 1)] + [2**31 - 1])
    bucket = bucket_of(distance, 2, 1000)
    assert (bucket.diff() >= 0).all()
    assert bucket[-1] == bucket_of(torch.tensor(1 << 30), 2, 1000)


def log_linear(distance: int, fraction_bits: int) -> int:
    """The bucket rule in integers: exponent and leading fraction bits of distance + 2^f."""
    shifted = distance + (1 << fraction_bits)
    octave = shifted.bit_length() - 1 - fraction_bits
    return (octave << fraction_bits) + (shifted >> octave) - (1 << fraction_bits)


def attention_by_row(case: AttentionCase, arguments: AttentionArguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row of each head over a list of the keys that it sees, each with its distance and elapsed time."""
    (q, k, v, cu_seqlens), keywords = arguments
    memory, relative = keywords["memory"], keywords.get("relative")
    position, time = keywords.get("position_bias"), keywords.get("time_bias")
    group = case.heads[0] // case.heads[1]
    out, lse2 = torch.zeros_like(q), torch.zeros(q.shape[:2], dtype=torch.float64)
    for user, count in enumerate(case.new):
        start = int(cu_seqlens[user])
        past = case.past[user] if case.past is not None else 0
        events = count - (case.targets[user] if case.targets is not None else 0)
        keys, values, seconds = [], [], []
        for event in range(past):
            page = int(memory.page_indices[int(memory.page_indptr[user]) + event // case.page_size])
            slot = event % case.page_size
            scales = [1.0, 1.0]
            if memory.k_scale is not None:
                scales = [memory.k_scale[page, slot, :, None].double(), memory.v_scale[page, slot, :, None].double()]
            keys.append(memory.k_pages[page, slot].double() * scales[0])
            values.append(memory.v_pages[page, slot].double() * scales[1])
            seconds.append(int(time.memory_seconds[page, slot]) if time else 0)
        for row in range(count):
            keys.append(k[start + row])
            values.append(v[start + row])
            seconds.append(int(time.key_seconds[start + row]) if time else 0)
        for row in range(count):
            at = past + min(row, events)
            seen = [(j, at - j) for j in range(max(0, at - case.window + 1), min(at + 1, past + events))]
            if row >= events:
                seen.append((past + row, 0))
            for head in range(case.heads[0]):
                query, kv_head = q[start + row, head], head // group
                scores = []
                for j, distance in seen:
                    score = query @ keys[j][kv_head]
                    if relative is not None:
                        score = (query + relative.u[head]) @ keys[j][kv_head]
                        score = score + (query + relative.v[head]) @ relative.r[distance, head]
                    score = score / math.sqrt(case.head_dim)
                    if position is not None:
                        bucket = min(log_linear(distance, position.fraction_bits), position.table.shape[1] - 1)
                        score = score + position.table[head, bucket].double()
                    if time is not None:
                        elapsed = (int(time.query_seconds[start + row]) - seconds[j] + 2**31) % 2**32 - 2**31
                        bucket = min(log_linear(max(elapsed, 0), time.fraction_bits), time.table.shape[1] - 1)
                        score = score + time.table[head, bucket].double()
                    scores.append(score)
                score_of = torch.stack(scores)
                if keywords["kind"] == "silu":
                    weights = score_of / (1 + torch.exp(-score_of)) / case.window
                else:
                    weights = score_of.exp() / score_of.exp().sum()
                    lse2[start + row, head] = score_of.exp().sum().log2()
                out[start + row, head] = sum(w * values[j][kv_head] for w, (j, _) in zip(weights, seen, strict=True))
    return out, lse2

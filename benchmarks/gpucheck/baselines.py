"""Others' attention on the same problems: PyTorch's SDPA and FlexAttention, flash-attn, FlashInfer.

They take users of equal lengths here, so that none pays for padding, and but for FlashInfer and "gather + sdpa" they
get keys and values as dense tensors, gathered beforehand: what they would cost over paged memory is more.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from gpucheck.timed import Baseline, NotExpressibleError, Outputs
from longrec.kernels.attention_cases import AttentionArguments, AttentionCase
from longrec.kernels.types import bucket_of

__all__ = ["attention_baselines"]

WORKSPACE_BYTES = 256 << 20


def attention_baselines(
    case: AttentionCase, arguments: AttentionArguments, *, flex: bool = False
) -> Mapping[str, Baseline]:
    """Those that can express a case.

    Args:
        case: users of equal lengths, without a window.
        arguments: of the case.
        flex: FlexAttention too, whose compilation takes tens of seconds.
    """
    problem = _Dense(case, arguments)
    baselines: dict[str, Baseline] = {}
    if case.variant == "softmax" and case.memory_dtype == "same" and case.targets is None:
        baselines["sdpa"] = Baseline(problem.sdpa)
        if case.past is not None:
            baselines["gather + sdpa"] = Baseline(problem.gather_and_sdpa)
        baselines["flash-attn"] = Baseline(problem.flash_attn)
        baselines["flashinfer"] = Baseline(problem.flashinfer)
    if flex:
        baselines["flex"] = Baseline(problem.flex)
    return baselines


class _Dense:
    """A case's tensors by user: q [B, Hq, N, D], keys and values [B, Hkv, M, D]."""

    def __init__(self, case: AttentionCase, arguments: AttentionArguments) -> None:
        self.case, self.arguments = case, arguments
        self.users, self.new = len(case.new), case.new[0]
        self.past = 0 if case.past is None else case.past[0]

    def by_user(self, rows: torch.Tensor) -> torch.Tensor:
        """[T, H, D] -> [B, H, N, D]."""
        return rows.unflatten(0, (self.users, self.new)).transpose(1, 2)

    def gather(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, Hkv, M, D] of memory and new events."""
        memory, gathered = self.arguments.keywords["memory"], []
        for pages, rows in zip(
            (None, None) if memory is None else (memory.k_pages, memory.v_pages),
            self.arguments.tensors[1:3],
            strict=True,
        ):
            rows = rows.unflatten(0, (self.users, self.new))  # [B, N, Hkv, D]
            if pages is not None:
                indices = memory.page_indices.long().view(self.users, -1)
                rows = torch.cat((pages[indices].flatten(1, 2)[:, : self.past], rows), dim=1)
            gathered.append(rows.transpose(1, 2))
        return gathered[0], gathered[1]

    def attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Outputs:
        """SDPA with the queries at the end of the keys."""
        from torch.nn.attention.bias import causal_lower_right

        gqa = {"enable_gqa": True} if q.shape[1] != keys.shape[1] else {}
        if self.past == 0:
            out = F.scaled_dot_product_attention(q, keys, values, is_causal=True, **gqa)
        elif self.new == 1:
            out = F.scaled_dot_product_attention(q, keys, values, **gqa)
        else:
            bias: Any = causal_lower_right(self.new, self.past + self.new)
            out = F.scaled_dot_product_attention(q, keys, values, bias, **gqa)
        return (out.transpose(1, 2).flatten(0, 1),)

    def sdpa(self) -> Callable[[], Outputs]:
        q = self.by_user(self.arguments.tensors[0]).contiguous()
        keys, values = (x.contiguous() for x in self.gather())
        return lambda: self.attend(q, keys, values)

    def gather_and_sdpa(self) -> Callable[[], Outputs]:
        q = self.by_user(self.arguments.tensors[0]).contiguous()
        return lambda: self.attend(q, *self.gather())

    def flash_attn(self) -> Callable[[], Outputs]:
        attend = _import("flash_attn").flash_attn_func
        q = self.arguments.tensors[0].unflatten(0, (self.users, self.new))  # [B, N, Hq, D]
        keys, values = (x.transpose(1, 2).contiguous() for x in self.gather())
        return lambda: (attend(q, keys, values, causal=True).flatten(0, 1),)

    def flashinfer(self) -> Callable[[], Outputs]:
        """Over pages of memory and new events together, which it wants to be appended before."""
        flashinfer, (num_heads, num_kv_heads), size = _import("flashinfer"), self.case.heads, self.case.page_size
        q, events = self.arguments.tensors[0], self.past + self.new
        pages = -(-events // size)
        k_pages, v_pages = (
            F.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, pages * size - events)).reshape(-1, size, *x.shape[1::2])
            for x in self.gather()
        )  # [B * pages, S, Hkv, D]
        users = torch.arange(self.users + 1, dtype=torch.int32, device=q.device)
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=q.device), "NHD"
        )
        wrapper.plan(
            users * self.new,
            users * pages,
            torch.arange(self.users * pages, dtype=torch.int32, device=q.device),
            torch.full((self.users,), (events - 1) % size + 1, dtype=torch.int32, device=q.device),
            num_heads,
            num_kv_heads,
            self.case.head_dim,
            size,
            causal=True,
            q_data_type=q.dtype,
        )
        return lambda: (wrapper.run(q, (k_pages, v_pages)),)

    def flex(self) -> Callable[[], Outputs]:
        if self.case.variant not in ("softmax", "position", "time"):
            raise NotExpressibleError("neither SiLU nor a product with R by distance is a score modification")
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        past, q = self.past, self.by_user(self.arguments.tensors[0]).contiguous()
        keys, values = (x.contiguous() for x in self.gather())

        def causal(batch: Any, head: Any, row: Any, key: Any) -> Any:
            return row + past >= key

        block_mask = create_block_mask(causal, None, None, self.new, past + self.new, device=str(q.device))
        attend = torch.compile(flex_attention, dynamic=False)
        modify = self._score_modification()
        gqa = {"enable_gqa": True} if q.shape[1] != keys.shape[1] else {}

        def call() -> Outputs:
            out = attend(q, keys, values, score_mod=modify, block_mask=block_mask, **gqa)
            return (out.transpose(1, 2).flatten(0, 1),)

        return call

    def _score_modification(self) -> Callable[..., Any] | None:
        position, time = (self.arguments.keywords.get(name) for name in ("position_bias", "time_bias"))
        if position is not None:
            distances = torch.arange(self.past + self.new, device=position.table.device)
            buckets = bucket_of(distances, position.fraction_bits, position.table.shape[1])

            def by_position(score: Any, batch: Any, head: Any, row: Any, key: Any) -> Any:
                return score + position.table[head, buckets[(row + self.past - key).clamp(min=0)]]

            return by_position
        if time is not None:
            if self.past:
                raise NotExpressibleError("times of events in memory lie in pages")
            query, seconds = (t.view(self.users, self.new) for t in (time.query_seconds, time.key_seconds))
            bits, num_buckets = time.fraction_bits, time.table.shape[1]

            def by_time(score: Any, batch: Any, head: Any, row: Any, key: Any) -> Any:
                elapsed = (query[batch, row] - seconds[batch, key]).clamp(min=0)
                # floor(2^f (log2(x / 2^f) + the fraction part)) without bits: exponent and leading fraction bits
                shifted = (elapsed + (1 << bits)).to(torch.float32)
                exponent = torch.floor(torch.log2(shifted))
                bucket = (exponent - bits) * (1 << bits) + torch.floor(
                    shifted * torch.exp2(bits - exponent) - (1 << bits)
                )
                return score + time.table[head, bucket.to(torch.int32).clamp(max=num_buckets - 1)]

            return by_time
        return None


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotExpressibleError("not installed") from None

"""Problems for `segment_attention`: what its tests, counts and timings run on, with ids that say what they are.

Holds the making of arguments only; nothing is attended to here. Free pages, the free ends of last pages and their
scales hold NaN wherever the dtype has one, as recycled pages may.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from longrec.kernels.types import PagedMemory, PositionBias, RelativeTerms, TimeBias

__all__ = ["AttentionArguments", "AttentionCase", "Variant"]

Variant = Literal["softmax", "silu", "position", "time", "hstu", "relative"]
MemoryDtype = Literal["same", "int8", "fp8"]

BUCKETS = 24
INT8_MAX = 127.0
FP8_MAX = 448.0
FP8_NAN = 0x7F
FREE_PAGES = 2


class AttentionArguments(NamedTuple):
    """Arguments of `segment_attention`: call it with `*arguments.tensors, **arguments.keywords`."""

    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    keywords: dict[str, Any]

    def to(self, dtype: torch.dtype) -> "AttentionArguments":
        """The same values in another dtype; int8 and float8 pages, scales and tables of float32 stay what they are."""
        q, k, v, cu_seqlens = self.tensors
        keywords = dict(self.keywords)
        memory, relative = keywords["memory"], keywords.get("relative")
        if memory is not None and memory.k_scale is None:
            keywords["memory"] = memory._replace(k_pages=memory.k_pages.to(dtype), v_pages=memory.v_pages.to(dtype))
        if relative is not None:
            keywords["relative"] = RelativeTerms(*(term.to(dtype) for term in relative))
        return AttentionArguments((q.to(dtype), k.to(dtype), v.to(dtype), cu_seqlens), keywords)


class AttentionCase(NamedTuple):
    """One problem.

    Args:
        new, past: each user's new events and events in memory; `past` None: no memory is passed.
        heads: Hq, Hkv. head_dim: D. page_size: S.
        window: events that a query sees.
        variant: "hstu" is SiLU with both biases.
        targets: each user's; None: no targets are passed.
        memory_dtype: of the pages.
    """

    new: Sequence[int]
    past: Sequence[int] | None = None
    heads: tuple[int, int] = (2, 1)
    head_dim: int = 16
    page_size: int = 16
    window: int = 1 << 20
    variant: Variant = "softmax"
    targets: Sequence[int] | None = None
    memory_dtype: MemoryDtype = "same"

    @property
    def id(self) -> str:
        """`new5.40-mem37.0-H4.2-D16-S16-w100-time-targets2.30-int8`."""
        parts = ["new" + ".".join(map(str, self.new))]
        if self.past is not None:
            parts.append("mem" + ".".join(map(str, self.past)))
        parts += ["H" + ".".join(map(str, self.heads)), f"D{self.head_dim}"]
        if self.past is not None:
            parts.append(f"S{self.page_size}")
        if self.window < 1 << 20:
            parts.append(f"w{self.window}")
        if self.variant != "softmax":
            parts.append(self.variant)
        if self.targets is not None:
            parts.append("targets" + ".".join(map(str, self.targets)))
        if self.memory_dtype != "same":
            parts.append(self.memory_dtype)
        return "-".join(parts)

    def make(self, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0) -> AttentionArguments:
        """Random arguments: standard normal q, k, v; pages in random order."""
        torch.manual_seed(seed)
        num_tokens, (num_heads, num_kv_heads) = sum(self.new), self.heads
        q = torch.randn(num_tokens, num_heads, self.head_dim).to(device, dtype)
        k, v = torch.randn(2, num_tokens, num_kv_heads, self.head_dim).to(device, dtype)
        memory = self._memory(dtype, device)
        keywords: dict[str, Any] = {
            "window": self.window,
            "memory": memory,
            "kind": "silu" if self.variant in ("silu", "hstu") else "softmax",
        }
        if self.targets is not None:
            keywords["num_targets"] = torch.tensor(self.targets, dtype=torch.int32, device=device)
        if self.variant in ("position", "hstu"):
            keywords["position_bias"] = PositionBias(torch.randn(num_heads, BUCKETS, device=device), fraction_bits=2)
        if self.variant in ("time", "hstu"):
            keywords["time_bias"] = self._time_bias(memory, device)
        if self.variant == "relative":
            longest = max((n + p for n, p in zip(self.new, self.past or [0] * len(self.new), strict=True)), default=0)
            u, v_relative = torch.randn(2, num_heads, self.head_dim).to(device, dtype)
            r = torch.randn(min(self.window, longest), num_heads, self.head_dim).to(device, dtype)
            keywords["relative"] = RelativeTerms(u, v_relative, r)
        return AttentionArguments((q, k, v, _offsets(self.new, device)), keywords)

    def _memory(self, dtype: torch.dtype, device: torch.device | str) -> PagedMemory | None:
        if self.past is None:
            return None
        pages = [-(-events // self.page_size) for events in self.past]
        total = sum(pages)
        page_indices = torch.randperm(total + FREE_PAGES)[:total].to(device, torch.int32)
        free = torch.ones(total + FREE_PAGES, self.page_size, dtype=torch.bool)
        for events, indices in zip(self.past, page_indices.cpu().long().split(pages), strict=True):
            event = torch.arange(events)
            free[indices[event // self.page_size], event % self.page_size] = False
        free = free.to(device)
        stored = torch.randn(2, len(free), self.page_size, self.heads[1], self.head_dim).to(device)
        lengths = torch.tensor(self.past, dtype=torch.int32, device=device)
        if self.memory_dtype == "same":
            k_pages, v_pages = stored.to(dtype).masked_fill(free[..., None, None], torch.nan)
            return PagedMemory(k_pages, v_pages, _offsets(pages, device), page_indices, lengths)
        largest = INT8_MAX if self.memory_dtype == "int8" else FP8_MAX
        scale = stored.abs().amax(-1) / largest  # [2, P, S, Hkv]
        coded = stored / scale[..., None]
        if self.memory_dtype == "int8":
            coded = coded.round().to(torch.int8)
        else:
            bits = coded.to(torch.float8_e4m3fn).view(torch.uint8).masked_fill(free[..., None, None], FP8_NAN)
            coded = bits.view(torch.float8_e4m3fn)
        k_scale, v_scale = scale.masked_fill(free[..., None], torch.nan)
        return PagedMemory(coded[0], coded[1], _offsets(pages, device), page_indices, lengths, k_scale, v_scale)

    def _time_bias(self, memory: PagedMemory | None, device: torch.device | str) -> TimeBias:
        """Times that rise by 0 to 50 seconds an event and wrap past int32 on the way, as unix seconds do in 2038."""
        clock = torch.iinfo(torch.int32).max - 200

        def wrap(times: torch.Tensor) -> torch.Tensor:
            return ((times + clock + (1 << 31)) % (1 << 32) - (1 << 31)).to(torch.int32)

        past = self.past or [0] * len(self.new)
        histories = [torch.randint(0, 51, (p + n,)).cumsum(0) for p, n in zip(past, self.new, strict=True)]
        key = torch.cat([times[p:] for times, p in zip(histories, past, strict=True)]) if histories else torch.empty(0)
        memory_seconds = None
        if memory is not None:
            memory_seconds = torch.zeros(memory.k_pages.shape[:2], dtype=torch.int32)
            pages = memory.page_indices.cpu().long().split(memory.page_indptr.diff().tolist())
            for times, p, indices in zip(histories, past, pages, strict=True):
                event = torch.arange(p)
                memory_seconds[indices[event // self.page_size], event % self.page_size] = wrap(times[:p])
            memory_seconds = memory_seconds.to(device)
        table = torch.randn(self.heads[0], BUCKETS, device=device)
        return TimeBias(table, 1, wrap(key + 20).to(device), wrap(key).to(device), memory_seconds)


def _offsets(counts: Sequence[int], device: torch.device | str) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0).to(device, torch.int32)

"""Problems for `segment_attention`: what its tests, counts and timings run on, with ids that say what they are.

Holds the making of arguments and the tables of cases that every body must pass; nothing is attended to here. Free
pages, the free ends of last pages and their scales hold NaN wherever the dtype has one, as recycled pages may.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from longrec.kernels.attention_plan import AttentionPlan, Tile
from longrec.kernels.types import PagedMemory, PositionBias, RelativeTerms, TimeBias

__all__ = [
    "GRADIENTS",
    "NO_MEMORY",
    "SHAPES",
    "SHIPPED_PLAN",
    "VARIANTS",
    "WINDOWS",
    "AttentionArguments",
    "AttentionCase",
    "Variant",
    "small_plan",
]

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

    def part(self, user: int, kv_head: int) -> "AttentionArguments":
        """One user's share of one key/value head and its queries: a problem of its own, with an answer that is rows
        cu_seqlens[user] to cu_seqlens[user + 1] and heads kv_head * G to (kv_head + 1) * G of the whole one's."""
        q, k, v, cu_seqlens = self.tensors
        first, last = (int(end) for end in cu_seqlens[user : user + 2])
        group = q.shape[1] // k.shape[1]
        heads, kv_heads = slice(kv_head * group, (kv_head + 1) * group), slice(kv_head, kv_head + 1)
        keywords = dict(self.keywords)
        memory, relative, time = keywords["memory"], keywords.get("relative"), keywords.get("time_bias")
        listed = None
        if memory is not None:
            begin, end = (int(place) for place in memory.page_indptr[user : user + 2])
            listed = memory.page_indices[begin:end].long()
            scales = (memory.k_scale, memory.v_scale)
            k_scale, v_scale = (None if scale is None else scale[listed][:, :, kv_heads] for scale in scales)
            keywords["memory"] = PagedMemory(
                memory.k_pages[listed][:, :, kv_heads],
                memory.v_pages[listed][:, :, kv_heads],
                _offsets([end - begin], q.device),
                torch.arange(end - begin, dtype=torch.int32, device=q.device),
                memory.lengths[user : user + 1],
                k_scale,
                v_scale,
            )
        if keywords.get("num_targets") is not None:
            keywords["num_targets"] = keywords["num_targets"][user : user + 1]
        if keywords.get("position_bias") is not None:
            position = keywords["position_bias"]
            keywords["position_bias"] = position._replace(table=position.table[heads])
        if time is not None:
            keywords["time_bias"] = TimeBias(
                time.table[heads],
                time.fraction_bits,
                time.query_seconds[first:last],
                time.key_seconds[first:last],
                None if listed is None else time.memory_seconds[listed],
            )
        if relative is not None:
            keywords["relative"] = RelativeTerms(relative.u[heads], relative.v[heads], relative.r[:, heads])
        rows = (q[first:last, heads], k[first:last, kv_heads], v[first:last, kv_heads])
        return AttentionArguments((*rows, _offsets([last - first], q.device)), keywords)


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
        stored = torch.randn(2, len(free), self.page_size, self.heads[1], self.head_dim, device=device)
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


# under `small_plan` users of up to 4 new events are split into at most 3 parts; those with more are tiled
SHAPES = (
    AttentionCase(new=(5, 1, 0, 37)),
    AttentionCase(new=(3, 1, 21), past=(17, 0, 47), heads=(4, 2)),
    AttentionCase(new=(1, 2), past=(80, 16), heads=(8, 1)),
    AttentionCase(new=(4, 19), past=(33, 1), heads=(3, 1), head_dim=32, page_size=32),
    AttentionCase(new=(2, 6), past=(100, 9), head_dim=64, page_size=64),
    AttentionCase(new=(1, 5), past=(40, 15), heads=(1, 1), head_dim=128, page_size=128),
    AttentionCase(new=(1, 5), past=(40, 15), heads=(1, 1), head_dim=256),
)
WINDOWS = tuple(
    AttentionCase(new=(2, 40), past=(48, 31), window=window, heads=(1, 1), page_size=page_size)
    for window, page_size in ((1, 16), (7, 16), (17, 32), (50, 16))
)
_VARIED = AttentionCase(new=(3, 21), past=(60, 37))
VARIANTS = (
    _VARIED._replace(variant="silu", window=40),
    _VARIED._replace(variant="position", targets=(1, 9)),
    _VARIED._replace(variant="time"),
    _VARIED._replace(variant="hstu", targets=(3, 17), window=30),
    _VARIED._replace(variant="relative"),
    _VARIED._replace(variant="relative", targets=(1, 20), window=30),
    _VARIED._replace(targets=(2, 18)),
    _VARIED._replace(memory_dtype="int8"),
    _VARIED._replace(targets=(1, 2), window=50, memory_dtype="fp8"),
    _VARIED._replace(variant="silu", window=64, memory_dtype="fp8"),
    _VARIED._replace(variant="relative", memory_dtype="int8"),
)
NO_MEMORY = (
    AttentionCase(new=(3, 21), targets=(1, 18), window=15),
    AttentionCase(new=(3, 21), variant="hstu", targets=(1, 18), window=15),
    AttentionCase(new=(3, 21), variant="relative", targets=(1, 18), window=15),
)
# long enough for the launcher's own tiles to have several of each
SHIPPED_PLAN = (
    AttentionCase(new=(1, 2), past=(300, 555), heads=(8, 1), head_dim=64, page_size=32),
    AttentionCase(new=(70, 3), past=(130, 200), heads=(2, 2), head_dim=32),
    AttentionCase(new=(70, 3), past=(130, 20), variant="hstu", targets=(40, 1), window=150),
    AttentionCase(new=(9, 1), past=(300, 20), variant="relative", head_dim=32),
    AttentionCase(new=(70, 9), past=(20, 5), heads=(2, 2), variant="relative", targets=(3, 1), window=66, head_dim=256),
)
GRADIENTS = (
    AttentionCase((7, 1, 20)),
    AttentionCase((5, 33), past=(37, 0), heads=(4, 2), window=30),
    AttentionCase((5, 33), past=(37, 0), variant="silu", window=64),
    AttentionCase((3, 21), past=(20, 5), variant="position"),
    AttentionCase((3, 21), past=(20, 5), variant="time"),
    AttentionCase((3, 21), past=(20, 5), heads=(2, 2), variant="relative", window=25),
    AttentionCase((9, 24), past=(18, 0), variant="hstu", window=40, targets=(2, 11)),
)


def small_plan(case: AttentionCase) -> AttentionPlan:
    """16 rows or more to a tile, 16 keys; users of up to 4 new events have their memory cut into up to 3 parts."""
    heads = 1 if case.variant == "relative" else case.heads[0] // case.heads[1]
    short = Tile(16 if heads <= 4 else 32, 16, 4, 1)
    return AttentionPlan(Tile(16 if heads == 1 else 32, 16, 4, 1), short, 4, 3, 1)

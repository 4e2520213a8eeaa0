"""The causal transformer over events: pre-norm, rotary, windowed grouped-query attention over paged memory, gated
feed-forward, scores tied to the item table. Neither losses nor the management of pages live here."""

import torch.nn.functional as F
from torch import Tensor, nn

from longrec import kernels
from longrec.config import ModelConfig
from longrec.modeling.events import Events
from longrec.modeling.layers import NORM_EPS, Dropout
from longrec.modeling.paged import LastAttention, PagedNetwork
from longrec.modeling.serving_memory import ServingMemory

__all__ = ["ServingMemory", "Transformer"]


class Transformer(PagedNetwork):
    """Next-item network (Kang & McAuley, SASRec, 2018, with the blocks of Touvron et al., LLaMA, 2023).

    Args:
        config: shape.
        dropout: probability at the embedding and at both branches of every block; only while training.
    """

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0) -> None:
        super().__init__(config, dropout=dropout)
        self.blocks = nn.ModuleList(Block(config, dropout) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.reset_parameters()

    def run(self, events: Events, memory: ServingMemory | None) -> Tensor:
        """As `PagedNetwork.run`."""
        return self.forward(events.items, events.gaps, events.positions, events.cu_seqlens, memory)

    def last_attention(self, events: Events, memory: ServingMemory) -> LastAttention:
        """As `PagedNetwork.last_attention`."""
        x = self.embed(events)
        for index, block in enumerate(self.blocks[:-1]):
            x = block(x, events.positions, events.cu_seqlens, memory, index)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        qkv = last.qkv(last.attention_norm(x)).unflatten(-1, (heads + 2 * kv_heads, self.config.head_dim))
        rotated = kernels.rotate(qkv[:, : heads + kv_heads], events.positions, self.config.rotary_base)
        return LastAttention(rotated[:, :heads], rotated[:, heads:], qkv[:, heads + kv_heads :], last.out.weight)

    def forward(
        self,
        items: Tensor,
        gaps: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        memory: ServingMemory | None = None,
    ) -> Tensor:
        """Hidden states of T new events of B users.

        Args:
            items: [T] int64, 0..num_items; num_items is the unknown item.
            gaps: [T] int64, bucket of the time since the user's previous event (`features.gap_buckets`).
            positions: [T] int64, absolute places in the users' logs.
            cu_seqlens: [B + 1] int32; user b's events are rows cu_seqlens[b] to cu_seqlens[b + 1], oldest first.
            memory: the users' past; None: they have none, and nothing is written.

        Returns:
            [T, dim], after the final norm.
        """
        x: Tensor = self.dropout(self.items(items) + self.gaps(gaps))  # [T, dim]
        if memory is not None and self.fits_block_step(memory.k_pages[0]):
            self.block_step(x, positions, cu_seqlens, memory).run(len(x), len(cu_seqlens) - 1)
            return x
        if memory is not None and self._runs_blocks_whole(x, cu_seqlens, memory):
            for index, block in enumerate(self.blocks):
                assert isinstance(block, Block)
                x = block.decode(x, positions, memory, index)
        else:
            for index, block in enumerate(self.blocks):
                x = block(x, positions, cu_seqlens, memory, index)
        result: Tensor = self.norm(x)
        return result

    def fits_block_step(self, pages: Tensor) -> bool:
        """Whether there is a `block_step` over such pages [P, S, Hkv, D]: the CPU has a body for the whole network."""
        block = self.blocks[0]
        assert isinstance(block, Block)
        return not self.training and kernels.fits_blocks(self.start, block.weights(), pages)

    def block_step(self, x: Tensor, positions: Tensor, cu_seqlens: Tensor, memory: ServingMemory) -> kernels.BlockStep:
        """What follows the embedding, x [T, dim], over tensors that stay where they are; x becomes the states.

        The other arguments are those of `forward`."""
        return kernels.BlockStep(
            x,
            [block.weights() for block in self.blocks if isinstance(block, Block)],  # all are: the type isn't known
            positions,
            cu_seqlens,
            memory.slots,
            [memory.layer(index) for index in range(len(self.blocks))],
            window=self.config.window,
            rotary_base=self.config.rotary_base,
            eps=NORM_EPS,
            final_norm=self.norm.weight,
        )

    def _runs_blocks_whole(self, x: Tensor, cu_seqlens: Tensor, memory: ServingMemory) -> bool:
        """Whether every user has one new event, on a GPU, in a network small enough for a launch a block."""
        config = self.config
        heads, page_size = (config.num_heads, config.num_kv_heads, config.head_dim), memory.k_pages[0].shape[1]
        return (
            x.is_cuda
            and memory.max_new == 1
            and len(x) == len(cu_seqlens) - 1
            and memory.k_pages[0].dtype == x.dtype
            and kernels.block_decode_fits(config.dim, *heads, page_size, x.dtype)
        )


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.config = config
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.attention_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.qkv = nn.Linear(config.dim, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, config.dim, bias=False)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.gate_up = nn.Linear(config.dim, 2 * config.hidden_dim, bias=False)
        self.down = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, positions: Tensor, cu_seqlens: Tensor, memory: ServingMemory | None, index: int
    ) -> Tensor:
        """[T, dim] -> [T, dim]; `index` is this block's layer in `memory`."""
        x = x + self.dropout(self.out(self._attend(self.attention_norm(x), positions, cu_seqlens, memory, index)))
        gate, up = self.gate_up(self.feed_forward_norm(x)).chunk(2, dim=-1)  # [T, hidden_dim] each
        result: Tensor = x + self.dropout(self.down(F.silu(gate) * up))
        return result

    def weights(self) -> kernels.BlockWeights:
        """The weights as the kernels take them."""
        modules = self._modules  # `self.qkv.weight` takes 1.4 us, a tenth of that this way, and a step asks for all
        names = ("attention_norm", "qkv", "out", "feed_forward_norm", "gate_up", "down")
        return kernels.BlockWeights(*(modules[name]._parameters["weight"] for name in names))  # type: ignore

    def decode(self, x: Tensor, positions: Tensor, memory: ServingMemory, index: int) -> Tensor:
        """`forward` for one new event of each user, [B, dim] -> [B, dim], in one launch; without dropout."""
        return kernels.block_decode(
            x,
            self.weights(),
            positions,
            memory.slots,
            memory.layer(index),
            window=self.config.window,
            rotary_base=self.config.rotary_base,
            eps=NORM_EPS,
            validate=False,
        )

    def _attend(
        self, x: Tensor, positions: Tensor, cu_seqlens: Tensor, memory: ServingMemory | None, index: int
    ) -> Tensor:
        heads, kv_heads, base = self.config.num_heads, self.config.num_kv_heads, self.config.rotary_base
        qkv = self.qkv(x).unflatten(-1, (heads + 2 * kv_heads, self.config.head_dim))  # [T, Hq + 2 Hkv, D]
        past: kernels.PagedMemory | None = None
        max_new = max_memory = None
        if memory is None:
            rotated = kernels.rotate(qkv[:, : heads + kv_heads], positions, base)
            q, k, v = rotated[:, :heads], rotated[:, heads:], qkv[:, heads + kv_heads :]
        else:
            past = memory.layer(index)
            q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
            q, k = memory.append(index, q, k, v, positions, base)
            stored = past.k_pages.dtype
            if stored != q.dtype:  # seen as a later event sees them: an answer doesn't depend on what came together
                k, v = kernels.as_stored(k, stored), kernels.as_stored(v, stored)
            max_new, max_memory = memory.max_new, memory.max_memory
        # values aren't checked: who packs batches and pages vouches for them, and on a GPU the host would wait
        out, _ = kernels.segment_attention(
            q,
            k,
            v,
            cu_seqlens,
            window=self.config.window,
            memory=past,
            max_new=max_new,
            max_memory=max_memory,
            validate=False,
        )
        return out.flatten(1)  # [T, Hq * D]

"""What is timed beside attention: the write into pages, the catalogue's top-k and loss, the fused block."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from gpucheck.comparing import same
from gpucheck.timed import Baseline, Outputs, Target, Timing, Work
from longrec.kernels.append import append_memory
from longrec.kernels.append_cases import BASE, AppendCase, compare_append, compare_quantised, rotated
from longrec.kernels.block_decode import block_decode, block_decode_reference
from longrec.kernels.block_decode_cases import BlockCase
from longrec.kernels.cross_entropy import catalogue_cross_entropy
from longrec.kernels.exactness import Comparison, compare
from longrec.kernels.reference import rotate
from longrec.kernels.segment_attention import segment_attention
from longrec.kernels.topk import catalogue_topk

__all__ = ["append_work", "block_work", "cross_entropy_work", "rest", "topk_work"]

BF16 = torch.bfloat16
ITEMS, WIDTH, BEST = 1_000_000, 128, 100
CHECKED_ROWS = 64  # of the loss, against float64
ROOM_BYTES = 24 << 30  # free device memory above which the loss is timed over 4,096 rows, else over 1,024


def rest() -> Iterator[Timing]:
    """Everything beside attention."""
    for num_rows in (64, 1):
        name = f"topk B{num_rows}-N{ITEMS}-d{WIDTH}-k{BEST} bf16"
        yield Timing(name, topk_work(num_rows, ITEMS), Target("bandwidth", 0.80), quick=num_rows == 64)
    for page_dtype in (BF16, torch.int8, torch.float8_e4m3fn):
        yield Timing(f"append T8192-H8.2-D128 to {str(page_dtype).removeprefix('torch.')}", append_work(page_dtype))
    for users in (64, 512):
        yield Timing(f"block decode B{users}-mem511-d64-H2.2-D32-F128 bf16", block_work(users))
    yield Timing(f"cross entropy N{ITEMS}-d{WIDTH} bf16, forward and backward", _cross_entropy)


def topk_work(num_rows: int, num_items: int) -> Callable[[torch.device], Work]:
    """The BEST items of each row."""

    def make(device: torch.device) -> Work:
        torch.manual_seed(0)
        hidden, items = (torch.randn(n, WIDTH, device=device).to(BF16) for n in (num_rows, num_items))

        def check(outputs: Outputs) -> list[Comparison]:
            """Sums come in another order, so near-equal scores may trade places; each must be its item's score."""
            (scores,), (again, indices) = outputs, catalogue_topk(hidden, items, BEST, validate=False)
            exact = hidden.double() @ items.double().T  # [B, N]
            best = exact.topk(BEST).values
            rounded = (hidden.float() @ items.float().T).topk(BEST).values
            return [
                same("scores, again", again, scores),
                compare("scores", scores, rounded, best, torch.float32),
                compare("scores of the items", scores, rounded, exact.gather(1, indices), torch.float32),
                same(
                    "items, each once", indices.sort(1).values.diff(dim=1).clamp(max=1), torch.ones_like(indices)[:, 1:]
                ),
            ]

        def plain() -> Callable[[], Outputs]:
            return lambda: (torch.mm(hidden, items.T, out_dtype=torch.float32).topk(BEST).values,)

        return Work(
            call=lambda: catalogue_topk(hidden, items, BEST, validate=False)[:1],
            check=check,
            least_bytes=(num_items + num_rows) * WIDTH * 2 + num_rows * BEST * (4 + 8),
            least_flops=2 * num_rows * num_items * WIDTH,
            baselines={"matmul + topk": Baseline(plain)},
        )

    return make


def append_work(page_dtype: torch.dtype, num_tokens: int = 8192) -> Callable[[torch.device], Work]:
    """The write of rotated keys and values into pages of a dtype."""

    def make(device: torch.device) -> Work:
        case = AppendCase(num_tokens, 8, 2, 128, 64)
        arguments = case.make(BF16, page_dtype, device)
        arguments["slots"] = torch.randperm(len(arguments["k_pages"]) * case.page_size)[: case.num_tokens].to(device)

        def check(outputs: Outputs) -> list[Comparison]:
            positions, comparisons = arguments["positions"], []
            for name, got in zip(("q", "k"), outputs, strict=True):
                x = arguments[name]
                comparisons.append(compare(name, got, rotate(x, positions, BASE), rotated(x, positions), BF16))
            if page_dtype == BF16:
                return comparisons + compare_append(case, BF16, device)
            return comparisons + compare_quantised(case, page_dtype, device)

        item, scale = page_dtype.itemsize, 0 if page_dtype == BF16 else 4
        least = case.num_tokens * 128 * 2 * (8 + 2 + 2 + 8 + 2)  # q, k, v, and the rotated q and k
        least += case.num_tokens * 2 * 2 * (128 * item + scale) + case.num_tokens * 16
        return Work(lambda: append_memory(**arguments, validate=False), check, least, 0)

    return make


def block_work(num_users: int) -> Callable[[torch.device], Work]:
    """A block of a small recommender over memories of 511 events."""

    def make(device: torch.device) -> Work:
        case = BlockCase(64, 2, 2, 32, 128, 32, (511,) * num_users)
        settings: dict[str, Any] = {"window": 1 << 20, "rotary_base": 10_000.0}
        problem = case.make(BF16, device)

        def check(outputs: Outputs) -> list[Comparison]:
            same_dtype, exact = (
                block_decode_reference(*problem.copy(dtype), **settings) for dtype in (BF16, torch.float64)
            )
            return [compare("out", outputs[0], same_dtype, exact, BF16)]

        def unfused() -> Callable[[], Outputs]:
            x, weights, positions, slots, memory = problem.copy(BF16)
            cu_seqlens = torch.arange(num_users + 1, dtype=torch.int32, device=device)

            def call() -> Outputs:
                normed = F.rms_norm(x, x.shape[1:], weights.attention_norm, 1e-6)
                qkv = F.linear(normed, weights.qkv).unflatten(-1, (-1, case.head_dim))
                q, k, v = qkv.split((case.num_heads, case.num_kv_heads, case.num_kv_heads), dim=1)
                q, k = append_memory(q, k, v, positions, slots, *memory[:2], rotary_base=10_000.0, validate=False)
                attended, _ = segment_attention(
                    q, k, v, cu_seqlens, window=1 << 20, memory=memory, max_new=1, max_memory=511, validate=False
                )
                y = x + F.linear(attended.flatten(1), weights.out)
                normed = F.rms_norm(y, y.shape[1:], weights.feed_forward_norm, 1e-6)
                gate, up = F.linear(normed, weights.gate_up).chunk(2, dim=-1)
                return (y + F.linear(F.silu(gate) * up, weights.down),)

            return call

        weight_numbers = sum(weight.numel() for weight in problem.weights)
        rows = 512 * case.num_kv_heads * case.head_dim * 2  # keys and values, the new ones written
        return Work(
            call=lambda: (block_decode(*problem, **settings, validate=False),),
            check=check,
            least_bytes=2 * (weight_numbers + num_users * (2 * case.dim + rows)),
            least_flops=2 * num_users * (weight_numbers - 2 * case.dim),  # attention multiplies on the plain cores
            baselines={"operators one by one": Baseline(unfused)},
        )

    return make


def _cross_entropy(device: torch.device) -> Work:
    return cross_entropy_work(4096 if torch.cuda.mem_get_info(device)[0] > ROOM_BYTES else 1024, ITEMS, device)


def cross_entropy_work(num_rows: int, num_items: int, device: torch.device) -> Work:
    """The loss over a catalogue, forward and backward."""
    torch.manual_seed(0)
    hidden = torch.randn(num_rows, WIDTH, device=device).to(BF16).requires_grad_()
    items = (torch.randn(num_items, WIDTH, device=device) / 4).to(BF16).requires_grad_()
    targets = torch.randint(num_items, (num_rows,), device=device)

    def call() -> Outputs:
        loss = catalogue_cross_entropy(hidden, items, targets, validate=False)
        return (loss.detach(), *torch.autograd.grad(loss, (hidden, items)))

    def plain() -> Callable[[], Outputs]:
        def step() -> Outputs:
            loss = F.cross_entropy((hidden @ items.T).float(), targets)
            return (loss.detach(), *torch.autograd.grad(loss, (hidden, items)))

        return step

    return Work(
        call=call,
        check=lambda outputs: _check_loss(hidden.detach(), items.detach(), targets, outputs),
        least_bytes=2 * 2 * (num_rows + num_items) * WIDTH,  # both read, both gradients written
        least_flops=3 * 2 * num_rows * num_items * WIDTH,  # logits, and a product for each gradient
        baselines={"matmul + F.cross_entropy": Baseline(plain, graph=False)},
        graph=False,
    )


def _check_loss(hidden: torch.Tensor, items: torch.Tensor, targets: torch.Tensor, outputs: Outputs) -> list[Comparison]:
    """The mean loss over all rows; the gradient of some rows of hidden, and of some items, over all rows."""
    some = torch.cat([targets[:CHECKED_ROWS], torch.arange(CHECKED_ROWS, device=targets.device)])  # items
    results = []
    for dtype in (BF16, torch.float64):
        loss, grad_hidden, grad_items = torch.zeros((), dtype=torch.float64, device=hidden.device), None, 0.0
        for rows, wanted in zip(hidden.split(CHECKED_ROWS), targets.split(CHECKED_ROWS), strict=True):
            logits = rows.to(dtype) @ items.to(dtype).T  # [CHECKED_ROWS, N]
            wide = logits.double() if dtype == torch.float64 else logits.float()
            p = torch.softmax(wide, 1)
            loss += F.cross_entropy(wide, wanted, reduction="sum").double()
            p.scatter_add_(1, wanted[:, None], torch.full_like(p[:, :1], -1.0))
            slope = (p / len(hidden)).to(dtype)
            grad_items = grad_items + (slope[:, some].T.double() @ rows.double())
            if grad_hidden is None:
                grad_hidden = slope @ items.to(dtype)
        results.append((loss / len(hidden), grad_hidden, grad_items))
    got = (outputs[0], outputs[1][:CHECKED_ROWS], outputs[2][some])
    names = ("loss", "grad hidden", "grad items")
    dtypes = (torch.float32, BF16, BF16)
    return [
        compare(name, ours, theirs, exact, dtype)
        for name, ours, theirs, exact, dtype in zip(names, got, *results, dtypes, strict=True)
    ]

"""What is timed of attention, most important first; `timings_rest` has the other operators."""

from collections.abc import Callable, Iterator

import torch

from gpucheck.baselines import attention_baselines
from gpucheck.timed import Baseline, Outputs, Target, Timing, Work
from gpucheck.timings_rest import rest
from longrec.kernels.attention import segment_attention as differentiable
from longrec.kernels.attention_cases import AttentionArguments, AttentionCase, MemoryDtype
from longrec.kernels.attention_gradients import reference_gradients
from longrec.kernels.bench.problems import attention_least
from longrec.kernels.exactness import Comparison, compare
from longrec.kernels.reference import segment_attention as reference
from longrec.kernels.segment_attention import segment_attention

__all__ = ["attention_timing", "backward_work", "timings"]

BF16 = torch.bfloat16
USERS = 64
BANDWIDTH = Target("bandwidth", 0.80)
MOST_OF_PLAIN = 1.3  # Transformer-XL and time bias
BACKWARD_PRODUCTS = 2.5  # q k, dout v, dv, dk and dq, against q k and p v


def timings() -> list[Timing]:
    """Everything that is timed, in the order in which it is given up where time runs out: from the end."""
    return [*_first(), *_decodes(), *_appends(), *rest(), *_backward(), *_flex()]


def attention_timing(
    id: str, case: AttentionCase, target: Target | None = None, *, quick: bool = False, flex: bool = False
) -> Timing:
    """The forward of a case in bfloat16."""

    def make(device: torch.device) -> Work:
        arguments = case.make(BF16, device)
        bounds = {"max_new": max(case.new), "max_memory": max(case.past or [0]), "validate": False}
        least_bytes, least_flops = attention_least(case, BF16, arguments)
        return Work(
            call=lambda: segment_attention(*arguments.tensors, **arguments.keywords, **bounds)[:1],
            check=lambda outputs: _check(case, arguments, outputs[0]),
            least_bytes=least_bytes,
            least_flops=least_flops,
            baselines=attention_baselines(case, arguments, flex=flex),
        )

    return Timing(id, make, target, quick)


def _shares(case: AttentionCase) -> tuple[tuple[int, int], tuple[int, int]]:
    """User and key/value head of the shares that are held against float64: the whole would not fit."""
    return (0, 0), (len(case.new) - 1, case.heads[1] - 1)


def _check(case: AttentionCase, arguments: AttentionArguments, out: torch.Tensor) -> list[Comparison]:
    comparisons = []
    for user, kv_head in _shares(case):
        part = arguments.part(user, kv_head)
        (same_dtype, _), (exact, _) = (reference(*a.tensors, **a.keywords) for a in (part, part.to(torch.float64)))
        got = _rows(case, out, user, kv_head, case.heads[0] // case.heads[1])
        comparisons.append(compare(f"out of user {user}", got, same_dtype, exact, BF16))
    return comparisons


def _rows(case: AttentionCase, x: torch.Tensor, user: int, kv_head: int, heads: int) -> torch.Tensor:
    """One user's rows and one group's heads of x [T, H, D]."""
    first = sum(case.new[:user])
    return x[first : first + case.new[user], kv_head * heads : (kv_head + 1) * heads]


def _decode(new: int, past: int, stored: MemoryDtype, target: Target | None, *, quick: bool = False) -> Timing:
    name = "bf16" if stored == "same" else stored
    case = AttentionCase((new,) * USERS, (past,) * USERS, (8, 2), 128, 64, memory_dtype=stored)
    return attention_timing(f"decode {new} x {USERS} users over {past} H8.2-D128 {name}", case, target, quick=quick)


def _causal(new: int, head_dim: int, users: int, variant: str = "plain") -> tuple[str, AttentionCase]:
    window = new if variant == "hstu" else 1 << 20  # the divisor of HSTU's weights
    kind = "softmax" if variant == "plain" else variant
    case = AttentionCase((new,) * users, None, (16, 16), head_dim, window=window, variant=kind)
    return f"causal {new} x {users} users H16-D{head_dim} {variant}", case


def _first() -> Iterator[Timing]:
    yield _decode(1, 4096, "same", BANDWIDTH, quick=True)
    yield attention_timing(*_causal(4096, 128, 4), Target("tflops", 400.0), quick=True)


def _decodes() -> Iterator[Timing]:
    for new in (4, 16):
        yield _decode(new, 4096, "same", BANDWIDTH)
    quantised: tuple[MemoryDtype, ...] = ("int8", "fp8")
    for stored in quantised:
        for new in (1, 16):
            yield _decode(new, 4096, stored, BANDWIDTH, quick=(new, stored) == (1, "int8"))
    for new in (1, 4, 16):
        yield _decode(new, 16384, "same", BANDWIDTH)
    for new in (1, 4, 16):
        yield _decode(new, 1024, "same", None)


def _appends() -> Iterator[Timing]:
    plain = {head_dim: _causal(4096, head_dim, 4)[0] for head_dim in (64, 128)}
    yield attention_timing(*_causal(4096, 64, 4))
    for variant in ("relative", "time", "position", "hstu"):
        for head_dim in (64, 128):
            limit = MOST_OF_PLAIN if variant in ("relative", "time") else float("inf")
            target = Target("ratio", limit, plain[head_dim])
            if head_dim == 64 or variant in ("relative", "time"):
                yield attention_timing(*_causal(4096, head_dim, 4, variant), target)
    yield attention_timing(
        "append 2048 over 2048 x 4 users H16-D128", AttentionCase((2048,) * 4, (2048,) * 4, (16, 16), 128, 64)
    )
    yield attention_timing(*_causal(512, 128, 32))
    targets = AttentionCase((256,) * 16, (4096,) * 16, (8, 2), 128, 64, targets=(256,) * 16)
    yield attention_timing("256 targets over 4096 x 16 users H8.2-D128", targets)


def _backward() -> Iterator[Timing]:
    for variant in ("plain", "hstu"):
        name, case = _causal(4096, 64, 8, variant)
        yield Timing(f"backward of {name}", backward_work(case))


def backward_work(case: AttentionCase) -> Callable[[torch.device], Work]:
    """The backward of a case in bfloat16, its forward done."""

    def make(device: torch.device) -> Work:
        arguments = case.make(BF16, device)
        q, k, v, cu_seqlens = arguments.tensors
        for leaf in (q, k, v):
            leaf.requires_grad_()
        weight = torch.randn(q.shape, device=device).to(BF16)
        out, _ = differentiable(
            q, k, v, cu_seqlens, **arguments.keywords, max_new=max(case.new), max_memory=0, validate=False
        )

        def sdpa() -> Callable[[], Outputs]:
            dense = [x.detach().unflatten(0, (len(case.new), -1)).transpose(1, 2).contiguous() for x in (q, k, v)]
            for leaf in dense:
                leaf.requires_grad_()
            theirs = torch.nn.functional.scaled_dot_product_attention(*dense, is_causal=True)
            grad = weight.unflatten(0, (len(case.new), -1)).transpose(1, 2).contiguous()

            def call() -> Outputs:
                gradients = torch.autograd.grad(theirs, dense, grad, retain_graph=True)
                return tuple(x.transpose(1, 2).flatten(0, 1) for x in gradients)

            return call

        least_bytes, least_flops = attention_least(case, BF16, arguments)
        return Work(
            call=lambda: torch.autograd.grad(out, (q, k, v), weight, retain_graph=True),
            check=lambda gradients: _check_gradients(case, arguments, weight, gradients),
            least_bytes=2 * least_bytes,  # gradients beside what they are of
            least_flops=int(BACKWARD_PRODUCTS * least_flops),
            baselines={"sdpa": Baseline(sdpa, graph=False)} if case.variant == "softmax" else {},
            graph=False,
        )

    return make


def _check_gradients(
    case: AttentionCase, arguments: AttentionArguments, weight: torch.Tensor, gradients: Outputs
) -> list[Comparison]:
    comparisons = []
    for user, kv_head in _shares(case):
        part, part_weight = arguments.part(user, kv_head), _rows(case, weight, user, kv_head, 1)
        same_dtype = reference_gradients(part, part_weight)
        exact = reference_gradients(part.to(torch.float64), part_weight.double())
        for name, gradient in zip(("q", "k", "v"), gradients, strict=True):
            got = _rows(case, gradient, user, kv_head, 1)
            comparisons.append(
                compare(f"grad {name} of user {user}", got, same_dtype[name], exact[name], BF16, units=2)
            )
    return comparisons


def _flex() -> Iterator[Timing]:
    """The same problems again, beside FlexAttention, which takes long to compile."""
    for variant in ("plain", "time", "position"):
        name, case = _causal(4096, 64, 4, variant)
        yield attention_timing(f"{name}, beside flex", case, flex=True)

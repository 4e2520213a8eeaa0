"""`catalogue_topk` in PyTorch."""

import torch

__all__ = ["catalogue_topk"]

CHUNK_SCORES = 1 << 21  # scores at a time: 8 MB of float32 stay in the cache between the passes over them


def catalogue_topk(
    hidden: torch.Tensor,
    items: torch.Tensor,
    k: int,
    *,
    seen_indptr: torch.Tensor | None = None,
    seen_indices: torch.Tensor | None = None,
    blocked: torch.Tensor | None = None,
    categories: torch.Tensor | None = None,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best items of each row. `longrec.kernels.catalogue_topk` says what is what.

    Float64 stays float64, anything else is scored in float32. Never holds more than `CHUNK_SCORES` scores.
    """
    num_rows, num_items = len(hidden), len(items)
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    best = hidden.new_full((num_rows, k), -torch.inf)
    index = torch.full((num_rows, k), -1, dtype=torch.int64, device=hidden.device)
    chunk = max(1024, CHUNK_SCORES // max(1, num_rows))
    seen = _seen_pairs(seen_indptr, seen_indices)
    for start in range(0, num_items if num_rows else 0, chunk):
        stop = min(start + chunk, num_items)
        scores = hidden @ items[start:stop].to(hidden.dtype).T  # [B, n]
        if seen is not None:
            here = (seen[1] >= start) & (seen[1] < stop)
            scores[seen[0][here], seen[1][here] - start] = -torch.inf
        if blocked is not None:
            scores.masked_fill_(_bits(blocked, start, stop), -torch.inf)
        if categories is not None and allowed is not None:
            scores.masked_fill_((categories[start:stop] & allowed[:, None]) == 0, -torch.inf)
        best, index = _merge(best, index, *_best_of(scores, min(k, stop - start)), start)
    return best, index


def _best_of(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of each row of scores [B, n] and their columns; which of equal scores come is by lower column, too."""
    values, columns = scores.topk(min(k + 1, scores.shape[1]))
    if values[:, 0].isnan().any():  # NaN sorts above everything; it is no score
        return _best_of(scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), k)
    if values.shape[1] > k:
        # topk takes any of the scores that equal the last: where one was left out, the row is sorted instead
        tied = ((values[:, k] == values[:, k - 1]) & (values[:, k] > -torch.inf)).nonzero()[:, 0]
        values, columns = values[:, :k].clone(), columns[:, :k].clone()
        if len(tied):
            ordered, order = scores[tied].sort(dim=1, descending=True, stable=True)
            values[tied], columns[tied] = ordered[:, :k], order[:, :k]
    return values, columns


def _merge(
    best: torch.Tensor, index: torch.Tensor, values: torch.Tensor, columns: torch.Tensor, start: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of best [B, k] and of the next items' best, all of higher index."""
    columns, order = columns.sort(dim=1)
    both = torch.cat([best, values.gather(1, order)], dim=1)
    items = torch.cat([index, columns + start], dim=1)
    items = items.masked_fill(both == -torch.inf, -1)
    # equal scores stand in the order of their indices by now, and a stable sort leaves them so
    both, order = both.sort(dim=1, descending=True, stable=True)
    k = best.shape[1]
    return both[:, :k], items.gather(1, order[:, :k])


def _seen_pairs(indptr: torch.Tensor | None, indices: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Row and item of each seen item."""
    if indptr is None or indices is None:
        return None
    rows = torch.arange(len(indptr) - 1, device=indptr.device)
    return rows.repeat_interleave(indptr.diff().long()), indices.long()


def _bits(words: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Bits start..stop - 1 of a bitmask in int32 words, lowest bit first."""
    item = torch.arange(start, stop, device=words.device)
    return (words[item // 32] >> (item % 32)) & 1 != 0

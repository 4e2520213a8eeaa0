"""Paged memory: how a batch of users' cached keys and values is handed to the operators. Types only."""

from typing import NamedTuple

import torch

__all__ = ["PagedMemory"]


class PagedMemory(NamedTuple):
    """One layer's cached keys and values of the B users of a batch.

    User b's memory is the `lengths[b]` events before its new ones, oldest first, in the pages
    `page_indices[page_indptr[b] : page_indptr[b + 1]]`, S events a page; only the last page may be part full.

    Args:
        k_pages, v_pages: [P, S, Hkv, D]; free pages may hold anything, NaN included.
        page_indptr: [B + 1] int32, rising, from 0.
        page_indices: [N] int32, each in 0..P-1.
        lengths: [B] int32.
    """

    k_pages: torch.Tensor
    v_pages: torch.Tensor
    page_indptr: torch.Tensor
    page_indices: torch.Tensor
    lengths: torch.Tensor

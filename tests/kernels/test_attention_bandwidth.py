"""The timing of attention on a CPU: it counts what is read, and times no wrong answer."""

import pytest
import torch

from longrec.kernels.attention_cases import AttentionCase
from longrec.kernels.bench import attention_bandwidth
from longrec.kernels.bench.attention_bandwidth import measure_attention

CASE = AttentionCase(new=(1, 2), past=(40, 7), heads=(4, 2), head_dim=8, page_size=16, window=32)


def test_bytes_and_flops_are_those_that_queries_see():
    arguments = CASE.make(torch.float32)
    num_bytes, flops = attention_bandwidth._work(CASE, arguments)
    assert num_bytes == 2 * (31 + 7) * 2 * 8 * 4  # keys and values x events x heads x floats
    assert flops == 4 * (32 + 8 + 9) * 4 * 8


def test_shares_are_of_what_the_machine_reads():
    found = measure_attention(CASE, CASE.make(torch.float32), repeats=2, reference_repeats=1)
    assert found.share == found.gigabytes_per_second / found.read_gigabytes_per_second > 0
    assert found.threads == torch.get_num_threads()


def test_no_time_for_a_wrong_answer(monkeypatch):
    real = attention_bandwidth.segment_attention
    monkeypatch.setattr(
        attention_bandwidth, "segment_attention", lambda *tensors, **keywords: [real(*tensors, **keywords)[0] * 1.01]
    )
    with pytest.raises(ArithmeticError, match="no time is reported for a wrong answer"):
        measure_attention(CASE, CASE.make(torch.float32), repeats=1, reference_repeats=1)

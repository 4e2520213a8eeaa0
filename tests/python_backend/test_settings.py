"""Request parameters: defaults, limits, and one clear error for each misfit."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec import protocol
from longrec.config import EngineConfig
from longrec.errors import ArgumentError
from longrec.python_backend.settings import Settings, SettingsParser, parse_settings

CONFIG = EngineConfig(max_k=50, max_horizon=8, max_beam=4, max_explain=5, max_excluded=3)
BITS = {"Comedy": 1, "Sci-Fi, and more": 2, "Drama": 4}


def test_defaults_and_the_servers_own_parameters():
    assert parse_settings({"triton_enable_empty_final_response": False}, CONFIG) == Settings()
    assert SettingsParser(CONFIG)("") == SettingsParser(CONFIG)("{}") == Settings(k=protocol.DEFAULT_K)


def test_every_parameter_is_understood():
    sent = {
        "k": 50,
        "horizon": 8,
        "beam": 4,
        "exclude_seen": True,
        "exclude": "[9, 3, 9]",
        "categories": '["Comedy", "Sci-Fi, and more"]',
        "explain": 5,
        "scores": "probability",
    }
    assert set(sent) == set(protocol.PARAMETERS)
    settings = parse_settings(sent, CONFIG, BITS)
    assert settings == Settings(50, 8, 4, True, (3, 9), 3, 5, True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 0}, r"k=0: expected an integer in 1..50 \(model parameter max_k\)"),
        ({"k": 51}, r"k=51: expected an integer in 1..50"),
        ({"k": "ten"}, r"k='ten': expected an integer"),
        ({"k": True}, r"k=True: expected an integer"),
        ({"k": 1.0}, r"k=1.0: expected an integer"),
        ({"horizon": 9}, r"horizon=9: expected an integer in 1..8 \(model parameter max_horizon\)"),
        ({"beam": 0}, r"beam=0: expected an integer in 1..4 \(model parameter max_beam\)"),
        ({"explain": -1}, r"explain=-1: expected an integer in 0..5 \(model parameter max_explain\)"),
        ({"exclude_seen": 1}, r"exclude_seen=1: expected true or false"),
        ({"exclude": 3}, r"exclude=3: expected a JSON array of catalogue indices"),
        ({"exclude": "3, 4"}, r"exclude: expected a JSON array .* got text that isn't JSON"),
        ({"exclude": "{}"}, r"exclude: expected a JSON array .* got a JSON dict"),
        ({"exclude": "[1, 2, 3, 4]"}, r"exclude: .*at most 3 \(model parameter max_excluded\), got 4"),
        ({"exclude": "[-1]"}, r"exclude: .* got another element"),
        ({"exclude": "[true]"}, r"exclude: .* got another element"),
        ({"exclude": f"[{2**63}]"}, r"exclude: .* got another element"),
        ({"exclude": "[" * 90}, r"exclude: .* got text that isn't JSON"),
        ({"exclude": "[" * 100_000}, r"exclude: .* got 100000 characters"),
        ({"categories": "[]"}, r"categories: expected a JSON array .*, got none; leave the parameter out"),
        ({"categories": '["Horror"]'}, r"categories: expected .* got 'Horror'"),
        ({"categories": "[" * 9_000}, r"categories: .* got text that isn't JSON"),
        ({"categories": '[["Drama"]]'}, r"categories: expected .* got list"),
        ({"scores": "log"}, r"scores='log': expected logit or probability"),
        ({"scores": ["logit"]}, r"scores=\['logit'\]: expected logit or probability"),
        ({"scores": "x" * 99}, r"scores='x{39}…: expected"),
        ({"kk": 3}, r"parameter kk: expected one of k, horizon, beam, .*; remove it"),
        ({"k" * 99: 3}, r"parameter k{40}: expected"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_malformed_settings(parameters, message):
    with pytest.raises(ArgumentError, match=message):
        SettingsParser(CONFIG, BITS)(json.dumps(parameters))


def test_the_answers_size_is_bounded():
    config = EngineConfig()
    assert parse_settings({"k": 64, "horizon": 16, "explain": 16}, config).horizon == 16
    with pytest.raises(ArgumentError, match=r"k \* horizon \* explain = 65536: expected at most 16384; ask for fewer"):
        parse_settings({"k": 256, "horizon": 16, "explain": 16}, config)


def test_the_default_k_obeys_the_limit_too():
    for text in ("", "{}", '{"horizon": 1}'):
        with pytest.raises(ArgumentError, match=r"k=10: expected an integer in 1..4"):
            SettingsParser(EngineConfig(max_k=4))(text)


def test_a_category_that_comes_later_is_understood_then():
    bits: dict[str, int] = {}
    parser = SettingsParser(CONFIG, bits)
    text = json.dumps({"categories": '["New"]'})
    with pytest.raises(ArgumentError):
        parser(text)
    bits["New"] = 8
    assert parser(text).allowed == 8


def test_more_different_settings_than_are_kept():
    parser = SettingsParser(EngineConfig())
    for item in range(3_000):
        assert parser(json.dumps({"exclude": f"[{item}]"})).exclude == (item,)


SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 60), st.just(2**70), st.just(float("nan")), st.text(max_size=5)
)
VALUE = st.one_of(SCALAR, st.lists(SCALAR, max_size=3), st.lists(SCALAR, max_size=4).map(json.dumps))


@given(st.dictionaries(st.sampled_from(protocol.PARAMETERS), VALUE))
def test_anything_is_understood_or_refused(parameters):
    try:
        settings = SettingsParser(CONFIG, BITS)(json.dumps(parameters))
    except ArgumentError:
        return
    assert 1 <= settings.k <= 50
    assert 1 <= settings.horizon <= 8
    assert len(settings.exclude) <= 3

"""Settings: their sources, and the errors for wrong values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trio_sched.core.placement import SCHEMES as CORE_SCHEMES
from trio_sched.errors import ConfigError
from trio_sched.server.config import RULES, SCHEMES, Config, load


def test_each_source_overrides_the_previous_one(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.toml"
    file.write_text(
        'name = "file"\nhwm = 1\ngrace_s = 7\n[websocket]\nport = 8080\norigins = ["https://lab.example"]\n'
    )
    environ = {"TRIO_SCHED_HWM": "2", "TRIO_SCHED_NAME": "environment", "TRIO_SCHED_CONNECTION": "not ours"}
    config = load(file, environ, {"name": "option", "scheme": None})
    assert config == Config(
        name="option", hwm=2, grace_s=7.0, websocket_port=8080, websocket_origins=("https://lab.example",)
    )


def test_without_sources_there_are_the_defaults() -> None:
    assert load() == Config()


def test_lists_in_the_environment_are_separated_by_commas() -> None:
    config = load(environ={"TRIO_SCHED_WEBSOCKET_ORIGINS": "https://a.example, https://b.example"})
    assert config.websocket_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    ("environ", "options", "words"),
    [
        ({"TRIO_SCHED_HWM": "-1"}, {}, ["hwm", "-1", "TRIO_SCHED_HWM", "at least 0"]),
        ({"TRIO_SCHED_HWM": "many"}, {}, ["hwm", "'many'", "TRIO_SCHED_HWM", "a whole number"]),
        ({"TRIO_SCHED_GRACE_S": "nan"}, {}, ["grace_s", "nan", "at least 0"]),
        ({}, {"scheme": "best"}, ["scheme", "'best'", "option", "leastload, lru"]),
        ({}, {"name": "../up"}, ["name", "'../up'", "letters"]),
        ({}, {"address": "udp://here"}, ["address", "udp://here", "tcp://host:port"]),
        ({}, {"address": "tcp://here"}, ["address", "tcp://here", "tcp://host:port"]),
        ({}, {"heartbeat_s": 0}, ["heartbeat_s", "at least 0.001"]),
        ({}, {"websocket_port": 70000}, ["websocket_port", "70000", "65535"]),
        ({}, {"colour": "red"}, ["colour", "not a setting", "hwm"]),
        ({}, {"credit": 0}, ["credit", "0", "at least 1"]),
    ],
)
def test_the_error_for_a_wrong_value_names_its_source_and_what_is_allowed(
    environ: dict[str, str], options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, environ, options)
    for word in words:
        assert word in str(error.value)


def test_the_error_for_a_wrong_value_in_the_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.toml"
    file.write_text("hwm = 'ten'\n")
    with pytest.raises(ConfigError, match=r"hwm = 'ten' .*scheduler\.toml.*a whole number"):
        load(file)


def test_the_error_for_an_unreadable_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load(tmp_path / "missing.toml")
    file = tmp_path / "broken.toml"
    file.write_text("hwm = = 1")
    with pytest.raises(ConfigError, match=r"broken\.toml is not a TOML file"):
        load(file)


def test_a_config_made_without_load_is_checked() -> None:
    with pytest.raises(ConfigError, match="hwm = -5"):
        Config(hwm=-5)


def test_every_rule_belongs_to_a_setting_and_passes_its_default() -> None:
    assert set(RULES) <= set(Config.__struct_fields__)
    assert Config()


def test_the_schemes_are_those_of_the_core() -> None:
    assert set(SCHEMES) == set(CORE_SCHEMES)

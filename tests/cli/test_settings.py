"""The scheduler's settings as options: the table agrees with `Config`, and later sources override earlier ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from trio_sched.cli.app import run_command_line
from trio_sched.cli.settings import FORMATS, LEVELS, SCHEMES, SETTINGS, load_config
from trio_sched.errors import ConfigError
from trio_sched.server import config as server_config
from trio_sched.server.config import Config


def test_the_table_names_every_setting_once() -> None:
    assert sorted(setting.name for setting in SETTINGS) == sorted(Config.__struct_fields__)
    assert len({setting.option for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_an_option_has_the_type_of_its_setting(setting: Any) -> None:
    wanted = get_type_hints(Config)[setting.name]
    if wanted == tuple[str, ...]:
        wanted = list[str]
    assert setting.type in (wanted, *get_args(wanted))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_help_shows_a_numeric_default(setting: Any) -> None:
    default = getattr(Config(), setting.name)
    if isinstance(default, (int, float)):
        sizes: dict[float, str] = {
            1 << 30: "1 GiB",
            64 << 20: "64 MiB",
            32 << 20: "32 MiB",
            4 << 20: "4 MiB",
            16 << 10: "16 KiB",
        }
        shown = sizes.get(default, f"{default:g}" if default < 1 else f"{default:.0f}")
        assert f"[{shown}]" in setting.help


def test_choices_are_those_of_the_server() -> None:
    assert set(SCHEMES) == set(server_config.SCHEMES)
    assert set(LEVELS) == set(server_config.LOG_LEVELS)
    assert set(FORMATS) == set(server_config.LOG_FORMATS)


def config_of_serve(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Config:
    """Return the settings of `serve` with these options."""
    found: list[Config] = []
    monkeypatch.setattr("trio_sched.cli.local_cluster.run_in_foreground", lambda config, **_: found.append(config))
    assert run_command_line(["serve", *arguments]) == 0
    return found[0]


def test_without_options_the_settings_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIO_SCHED_RUNTIME_DIR")
    assert config_of_serve(monkeypatch) == Config()


def test_options_override_the_environment_which_overrides_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "lab.toml"
    file.write_text('hwm = 1\ngrace_s = 1.0\nname = "file"\n[websocket]\nport = 0\norigins = ["a", "b"]\n')
    monkeypatch.setenv("TRIO_SCHED_HWM", "2")
    monkeypatch.setenv("TRIO_SCHED_GRACE_S", "2")
    config = config_of_serve(monkeypatch, "--config", str(file), "--hwm", "0", "--websocket-origin", "c")
    assert (config.hwm, config.grace_s, config.name) == (0, 2.0, "file")
    assert (config.websocket_port, config.websocket_origins) == (0, ("c",))


def test_every_source_overrides_the_defaults_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config(None, {}, log_level="warning").log_level == "warning"
    assert load_config(None, {"log_level": "info"}, log_level="warning").log_level == "info"
    monkeypatch.setenv("TRIO_SCHED_LOG_LEVEL", "debug")
    assert load_config(None, {}, log_level="warning").log_level == "debug"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hwm", "-3"], "hwm = -3"),
        (["--scheme", "best"], "scheme = 'best'"),
        (["--name", "a/b"], "name = 'a/b'"),
        (["--bind", "http://x"], "address = 'http://x'"),
        (["--config", "/nowhere.toml"], "/nowhere.toml"),
    ],
)
def test_a_wrong_setting_is_named(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["serve", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_an_unknown_setting_in_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text("hmw = 3\n")
    with pytest.raises(ConfigError, match="hmw"):
        load_config(file, {})


@pytest.mark.parametrize("text", ["gpu=-1", "gpu=x", "=1", "gpu=inf"])
def test_a_wrong_resource_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["up", "--resource", text]) == 2
    assert repr(text) in capsys.readouterr().err

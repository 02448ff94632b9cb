"""Flags, environment and defaults become settings, or a message that says what would do."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest

from server.environment import FIELDS, SECTIONS, child_environment, load, parse
from server.nodes import forms
from server.settings import QueueSettings, Settings, SettingsError


def test_defaults_need_no_environment():
    settings = load({}, {})

    assert settings == Settings(data_dir=Path("~/.local/share/fourstep").expanduser())


def test_a_variable_sets_what_its_flag_sets():
    settings = load({}, {"FOURSTEP_TLS_PORT": "8443"})

    assert settings.tls_port == 8443


def test_a_flag_wins_over_its_variable():
    settings = load({"port": 9000}, {"FOURSTEP_PORT": "8001"})

    assert settings.port == 9000


def test_a_flag_that_was_not_given_leaves_the_variable():
    settings = load({"port": None}, {"FOURSTEP_PORT": "8001"})

    assert settings.port == 8001


@pytest.mark.parametrize(
    ("flags", "environ", "model"),
    [
        ({"model": None}, {}, "auto"),
        ({"model": None}, {"FOURSTEP_MODEL": Settings.model}, Settings.model),
        ({"model": Settings.model}, {"FOURSTEP_MODEL": "demo"}, Settings.model),
    ],
)
def test_a_commands_own_default_gives_way_to_whatever_was_asked_for(flags, environ, model):
    assert load(flags, environ, defaults={"model": "auto"}).model == model


def test_a_data_folder_in_the_home_of_no_user_is_an_error():
    with pytest.raises(SettingsError, match="data-dir: ~nosuch/data is in no user's home; give the whole path"):
        load({"data_dir": Path("~nosuch/data")}, {})


@pytest.mark.parametrize(("device", "devices"), [("none", ()), ("all", ("all",)), ("cpu, cuda:1", ("cpu", "cuda:1"))])
def test_one_engine_runs_for_each_device(device, devices):
    assert load({"device": device}, {}).devices == devices


@pytest.mark.parametrize("device", ["all,cpu", "cuda:0,none"])
def test_all_and_none_stand_alone(device):
    with pytest.raises(SettingsError, match="device: all and none stand alone"):
        load({"device": device}, {})


@pytest.mark.parametrize(
    ("chosen", "seconds"),
    [
        ({}, 0),
        ({"database": "postgresql://db/x"}, 3),
        ({"database": "postgresql://db/x", "drain_timeout": 2}, 2),
        ({"database": "postgresql://db/x", "lameduck": 0.0}, 0),
        ({"lameduck": 5.0}, 5),
    ],
)
def test_a_server_with_a_database_is_a_lame_duck_of_itself(chosen, seconds):
    assert Settings(**chosen).lameduck_s == seconds


def test_a_lame_duck_lives_no_longer_than_the_drain():
    with pytest.raises(SettingsError, match="lameduck: 16 s are more than drain-timeout, 15 s"):
        load({"lameduck": 16.0}, {})


def test_a_database_may_have_its_password_in_the_variable_but_in_no_flag():
    url = "postgresql://fourstep:secret@db/fourstep"

    assert load({}, {"FOURSTEP_DATABASE": url}).database == url
    with pytest.raises(SettingsError, match=r"a password in a flag\. Hint: .*pgpass"):
        load({"database": url}, {})


@pytest.mark.parametrize("url", ["mysql://db/fourstep", "db", "/var/lib/jobs.sqlite"])
def test_a_database_is_a_postgresql(url):
    with pytest.raises(SettingsError, match="begins with no postgresql://"):
        load({"database": url}, {})


def test_a_database_wants_files_that_all_servers_reach():
    with pytest.raises(SettingsError, match=r"needs files that all servers reach\. Hint: --files"):
        forms.check(load({"database": "postgresql://db/fourstep"}, {}))


def test_without_the_extra_a_database_is_refused_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = load({"database": "postgresql://db/fourstep", "files": "file:///mnt/shared"}, {})

    with pytest.raises(SettingsError, match=r"needs asyncpg, .*Hint: pip install 'fourstep\[cluster\]'"):
        forms.check(settings)


def test_a_variable_that_names_no_setting_is_an_error():
    with pytest.raises(SettingsError, match="FOURSTEP_PROT names no setting"):
        load({}, {"FOURSTEP_PROT": "8001"})


def test_the_prefix_of_all_variables_makes_none_alike():
    with pytest.raises(SettingsError, match=r"FOURSTEP_XYZ names no setting\. `fourstep serve --help` lists them"):
        load({}, {"FOURSTEP_XYZ": "1"})


def test_the_singular_of_keys_is_no_way_to_start_without_any():
    with pytest.raises(SettingsError, match="FOURSTEP_KEY names no setting"):
        load({}, {"FOURSTEP_KEY": "id:secret"})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "0", 0),
        ("tls_port", "none", None),
        ("start_timeout", "2.5", 2.5),
        ("force_safety_checks", "yes", True),
        ("force_safety_checks", "0", False),
        ("data_dir", "/tmp/x", Path("/tmp/x")),
        ("model", "some/repo", "some/repo"),
        ("key_share", ".5", 0.5),
        ("max_queue", "10_000", 10_000),
        ("takeover", " ON", True),
        ("takeover", "", False),
        ("dtype", "float16", "float16"),
    ],
)
def test_text_is_read_as_the_settings_type(name, text, value):
    assert parse(name, text) == value


@pytest.mark.parametrize(("name", "text"), [("port", "http"), ("start_timeout", "soon"), ("takeover", "perhaps")])
def test_text_of_another_type_is_an_error_that_names_the_flag(name, text):
    with pytest.raises(SettingsError, match=name.replace("_", "-")):
        parse(name, text)


def test_a_relative_data_dir_is_made_absolute():
    settings = load({"data_dir": Path("here")}, {})

    assert settings.data_dir == Path.cwd() / "here"


def test_each_device_of_the_list_gets_an_engine():
    assert Settings(device="cuda:0, cuda:1").devices == ("cuda:0", "cuda:1")


def test_an_engine_is_told_the_sides_that_it_may_compute():
    engine = Settings(max_side=768, min_side=128).engine

    assert (engine.max_side, engine.min_side) == (768, 128)


def test_each_setting_belongs_to_one_section():
    assert list(FIELDS) == [name for section in SECTIONS for name in section.__annotations__]
    assert set(FIELDS) == {field.name for field in dataclasses.fields(Settings)}


def test_a_section_checks_its_own_values():
    with pytest.raises(SettingsError, match="max-queue: 0 is out of bounds; at least 1"):
        QueueSettings(max_queue=0)


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_says_why_it_is(name):
    assert len(FIELDS[name].metadata["help"]) > 10


def test_a_child_process_inherits_no_setting(monkeypatch):
    monkeypatch.setenv("FOURSTEP_KEYS", "me:secret")

    assert "FOURSTEP_KEYS" not in child_environment()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"port": 70000}, "port: 70000 is out of bounds; 0 to 65535"),
        ({"max_batch": 0}, "max-batch: 0 is out of bounds; at least 1"),
        ({"start_timeout": -1.0}, "start-timeout: -1.0 is out of bounds; at least 0"),
        ({"min_body_rate": 0}, "min-body-rate: 0 is out of bounds; at least 1"),
        ({"max_header_bytes": 0}, "max-header-bytes: 0 is out of bounds; at least 1024"),
        ({"header_timeout": 0.0}, "header-timeout: 0.0 is out of bounds; at least 0.05"),
        ({"ping_interval": 0.0}, "ping-interval: 0.0 is out of bounds; at least 0.05"),
        ({"fetch_timeout": 0.0}, "fetch-timeout: 0.0 is out of bounds; at least 0.05"),
        ({"result_ttl": math.inf}, "result-ttl: inf is out of bounds; at least 0"),
        ({"result_ttl": math.nan}, "result-ttl: nan is out of bounds; at least 0"),
        ({"public_url": "box.lan"}, "public-url: 'box.lan' does not begin with http:// or https://"),
        ({"max_side": 1020}, "max-side: 1020 is no multiple of 8"),
        ({"max_side": 512, "min_side": 520}, "min-side: must not be more than max-side"),
        ({"jpeg_quality": 101}, "jpeg-quality: 101 is out of bounds; 1 to 100"),
        ({"jpeg_subsampling": "4:1:1"}, "jpeg-subsampling: '4:1:1' is none of 4:4:4, 4:2:2, 4:2:0"),
        ({"dtype": "float8"}, "dtype: 'float8' is none of auto, float16, bfloat16, float32"),
        ({"device": " , "}, "device: names none"),
        ({"device": "cpu,tpu"}, "device: 'tpu' is none of auto, all, none, cpu, mps, cuda, cuda:N"),
    ],
)
def test_a_value_that_cannot_be_is_an_error_that_says_what_can(values, said):
    with pytest.raises(SettingsError) as error:
        Settings(**values)

    assert str(error.value) == said

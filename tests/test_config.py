"""Precedence of options, variables and the config file, and every bad input."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.config import Config, load_config
from benchmark.errors import BenchError, DataError, SpecError

VARIABLES = tuple(
    f"QUERYBENCH_{name}" for name in ("DATA", "WEIGHTS", "CHECKPOINT", "CACHE", "CONFIG")
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty current folder and environment, with folders to choose from."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("option", "variable", "file", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.safetensors").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def refused(kind: type[BenchError], **options: Path) -> str:
    """Load a configuration that must be refused with one line."""
    with pytest.raises(BenchError) as caught:
        load_config(**options)
    assert caught.type is kind
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_nothing_is_set():
    assert load_config() == Config(data_root=None, weights_root=None, checkpoint=None)


@pytest.mark.parametrize(
    ("key", "variable", "leaf"),
    [
        ("data_root", "QUERYBENCH_DATA", ""),
        ("weights_root", "QUERYBENCH_WEIGHTS", ""),
        ("checkpoint", "QUERYBENCH_CHECKPOINT", "net.safetensors"),
        ("cache", "QUERYBENCH_CACHE", "made/later"),
    ],
)
def test_precedence(place, monkeypatch, key, variable, leaf):
    Path("querybench.toml").write_text(f'{key} = "{place / "file" / leaf}"')
    assert getattr(load_config(), key) == place / "file" / leaf
    monkeypatch.setenv(variable, str(place / "variable" / leaf))
    assert getattr(load_config(), key) == place / "variable" / leaf
    assert getattr(load_config(**{key: place / "option" / leaf}), key) == place / "option" / leaf
    monkeypatch.setenv(variable, "")
    assert getattr(load_config(), key) == place / "file" / leaf


def test_one_key_of_each_place(place, monkeypatch):
    Path("querybench.toml").write_text('data_root = "../file"')
    monkeypatch.setenv("QUERYBENCH_WEIGHTS", str(place / "variable"))
    config = load_config(checkpoint=place / "option" / "net.safetensors")
    assert config.data_root is not None and config.data_root.samefile(place / "file")
    assert config.weights_root == place / "variable"
    assert config.checkpoint == place / "option" / "net.safetensors"


def test_file_is_chosen_by_option_then_variable_then_folder(place, monkeypatch):
    Path("querybench.toml").write_text('data_root = "../file"')
    (place / "a.toml").write_text('data_root = "variable"')
    (place / "b.toml").write_text('data_root = "option"')
    monkeypatch.setenv("QUERYBENCH_CONFIG", str(place / "a.toml"))
    assert load_config().data_root == place / "variable"
    assert load_config(file=place / "b.toml").data_root == place / "option"


def test_relative_paths_belong_to_the_file(place):
    (place / "elsewhere" / "q.toml").write_text('checkpoint = "net.safetensors"')
    config = load_config(file=Path("../elsewhere/q.toml"))
    assert config.checkpoint == Path("../elsewhere/net.safetensors")


def test_home_is_expanded(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    assert load_config(data_root=Path("~/option")).data_root == place / "option"
    Path("querybench.toml").write_text('data_root = "~/file"')
    assert load_config().data_root == place / "file"


def test_missing_file(monkeypatch):
    assert "'no.toml' does not exist" in refused(SpecError, file=Path("no.toml"))
    monkeypatch.setenv("QUERYBENCH_CONFIG", "gone.toml")
    assert "'gone.toml' does not exist" in refused(SpecError)


@pytest.mark.parametrize("content", [b"data_root = ", b"\xff\xfe", b"[data_root", b"a = 1\na = 2"])
def test_malformed_file(content):
    Path("querybench.toml").write_bytes(content)
    assert "'querybench.toml' is not readable TOML" in refused(SpecError)


def test_folder_instead_of_file(place):
    assert "is not readable TOML" in refused(SpecError, file=place)


def test_unknown_key_names_the_nearest():
    Path("querybench.toml").write_text('data_rot = "x"')
    message = refused(SpecError)
    assert "querybench.toml" in message and "'data_rot'" in message and "data_root?" in message


@pytest.mark.parametrize("value", ["3", "true", '["a"]', "{ a = 1 }"])
def test_wrong_type(value):
    Path("querybench.toml").write_text(f"weights_root = {value}")
    message = refused(SpecError)
    assert "querybench.toml" in message and "weights_root=" in message


@pytest.mark.parametrize("key", ["data_root", "weights_root", "checkpoint"])
def test_path_that_does_not_exist(place, key):
    message = refused(DataError, **{key: place / "no"})
    assert f"--{key.replace('_', '-')}" in message and str(place / "no") in message


def test_message_names_variable_or_file(monkeypatch):
    Path("querybench.toml").write_text('data_root = "no"')
    assert "data_root in config file 'querybench.toml'" in refused(DataError)
    monkeypatch.setenv("QUERYBENCH_DATA", "~nobody-of-this-name/data")
    assert refused(DataError).startswith("QUERYBENCH_DATA: folder '~nobody-of-this-name/data'")


def test_roots_are_folders_and_checkpoints_files(place):
    refused(DataError, data_root=place / "option" / "net.safetensors")
    refused(DataError, checkpoint=place / "option")


def test_the_cache_is_the_user_s_unless_it_is_named_and_may_not_be_a_file(place, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "elsewhere"))
    assert load_config().cache_folder == place / "elsewhere" / "querybench"
    assert load_config(cache=place / "new").cache_folder == place / "new"
    file = place / "option" / "net.safetensors"
    assert "is not a folder" in refused(DataError, cache=file)

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from ponder_zoo.train.config import (
    ConfigError,
    changed_keys,
    check_same_run,
    config_to_dict,
    describe_config,
    load_config,
    parse_config,
    save_config,
)


@dataclass(frozen=True)
class Loss:
    rgb: float = 1.0
    depth: float = 0.1  # per metre


@dataclass(frozen=True)
class Config:
    """A run."""

    max_steps: int = 100  # optimizer steps
    # (an epoch has no meaning here)
    renderer: Literal["neus", "volsdf"] = "neus"
    shape: tuple[int, int, int] = (8, 8, 4)  # X, Y, Z
    init: str | None = None
    loss: Loss = Loss(rgb=3.0)
    encoder_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"Expected max_steps >= 1, got {self.max_steps}. Set a positive number.")


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("max_steps: 7\nloss:\n  depth: 0.5\n")
    config = load_config(Config, ["loss.rgb=2", "--config", str(file), "max_steps=9", "shape=[4,4,2]", "init=a=b"])
    assert config == Config(max_steps=9, shape=(4, 4, 2), init="a=b", loss=Loss(rgb=2.0, depth=0.5))
    assert isinstance(config.shape, tuple)


def test_defaults_of_nested_instances_are_kept():
    assert load_config(Config, []).loss.rgb == 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["max_step=3"], "Unknown key `max_step` in the command line. Did you mean `max_steps`?"),
        (["loss.dept=3"], "Did you mean `loss.depth`?"),
        (["depth=3"], "Did you mean `loss.depth`?"),
        (["zzzzqq=3"], "`--help` lists the keys"),
        (["loss=3"], "is a group of keys"),
        (["max_steps=1.5"], "`max_steps` in the command line expects int"),
        (["max_steps=0"], "Expected max_steps >= 1, got 0"),
        (["renderer=nerf"], "expects neus | volsdf"),
        (["shape=[1,2]"], "`shape` in the command line expects tuple"),
        (["--max_steps", "3"], "Write `max_steps=VALUE`"),
        (["--config", "/nowhere/x.yaml"], "Cannot read the configuration file /nowhere/x.yaml"),
    ],
)
def test_a_wrong_setting_says_what_and_what_to_do(arguments, message):
    with pytest.raises(ConfigError) as error:
        load_config(Config, arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1", "not valid YAML"), ("- 1\n", "`key: value`"), ("los: 1\n", "x.yaml")]
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(Config, ["--config", str(tmp_path / "x.yaml")])


def test_free_form_arguments_take_any_key():
    assert load_config(Config, ["encoder_args.depth=3"]).encoder_args == {"depth": 3}
    assert load_config(Config, ["encoder_args={a: [1, 2]}"]).encoder_args == {"a": [1, 2]}


def test_saved_settings_read_back_and_differences_are_named(tmp_path):
    config = load_config(Config, ["init=x", "encoder_args.k=1", "loss.rgb=9"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(Config, ["--config", str(tmp_path / "config.yaml")]) == config
    assert changed_keys(config, tmp_path / "config.yaml") == {}
    other = load_config(Config, ["init=x", "encoder_args.k=1", "loss.rgb=8"])
    assert changed_keys(other, tmp_path / "config.yaml") == {"loss.rgb": (9.0, 8.0)}
    assert config_to_dict(config)["loss"] == {"rgb": 9.0, "depth": 0.1}


def test_help_shows_keys_defaults_types_and_comments(capsys):
    text = describe_config(Config)
    assert "max_steps=100" in text and "optimizer steps" in text and "(an epoch" not in text
    assert "loss.depth=0.1" in text and "per metre [float]" in text and "[neus | volsdf]" in text
    with pytest.raises(SystemExit) as stop:
        parse_config(Config, ["--help"])
    assert stop.value.code == 0 and "A run." in capsys.readouterr().out


def test_the_program_ends_with_the_message():
    with pytest.raises(SystemExit, match="Did you mean `max_steps`"):
        parse_config(Config, ["max_stps=1"])


def test_a_run_goes_on_with_its_own_settings_only(tmp_path):
    file = tmp_path / "config.yaml"
    save_config(load_config(Config, []), file)
    check_same_run(load_config(Config, []), file)
    check_same_run(load_config(Config, ["max_steps=5"]), file, free=["max_"])
    with pytest.raises(ConfigError, match=r"loss\.rgb: 3\.0 then, 4\.0 now.*output=PATH"):
        check_same_run(load_config(Config, ["loss.rgb=4", "max_steps=5"]), file, free=["max_steps"])


def test_another_runs_settings_are_defaults_where_the_keys_exist():
    base = {"max_steps": 5, "other": 3, "loss": {"rgb": 7.0, "none": 1}, "encoder_args": {"a": {"b": 1}}}
    config = load_config(Config, ["loss.rgb=8"], base=base)
    assert config == Config(max_steps=5, loss=Loss(rgb=8.0), encoder_args={"a": {"b": 1}})


def test_a_file_changes_those_that_it_names_as_its_base(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("max_steps: 1\nrenderer: volsdf\nencoder_args: {width: 3, depth: 2}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nmax_steps: 2\nloss: {rgb: 5.0}\n")
    (tmp_path / "sub/c.yaml").write_text("base: [../a.yaml, ../b.yaml]\nloss: {depth: 7.0}\nencoder_args: {width: 4}\n")
    cfg = load_config(Config, ["--config", str(tmp_path / "sub/c.yaml"), "max_steps=3"])
    assert (cfg.max_steps, cfg.renderer, cfg.loss) == (3, "volsdf", Loss(rgb=5.0, depth=7.0))
    assert cfg.encoder_args == {"width": 4, "depth": 2}


def test_a_wrong_base_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml is its own base"):
        load_config(Config, ["--config", str(tmp_path / "a.yaml")])
    (tmp_path / "b.yaml").write_text("base: {max_steps: 3}\n")
    with pytest.raises(ConfigError, match=r"`base` in .*b\.yaml expects the name of a file"):
        load_config(Config, ["--config", str(tmp_path / "a.yaml")])
    (tmp_path / "b.yaml").write_text("base: gone.yaml\n")
    with pytest.raises(ConfigError, match=r"Cannot read the configuration file .*gone.yaml"):
        load_config(Config, ["--config", str(tmp_path / "a.yaml")])


@dataclass(frozen=True)
class Words:
    mixed_precision: Literal["no", "bf16"] = "bf16"
    fast: bool = True


def test_words_that_yaml_reads_as_booleans_are_choices_where_they_are_meant():
    assert load_config(Words, ["mixed_precision=no", "fast=no"]) == Words("no", False)
    with pytest.raises(ConfigError, match="mixed_precision"):
        load_config(Words, ["mixed_precision=yes"])


def test_given_values_win_over_the_base_and_are_checked():
    base, values = {"renderer": "volsdf", "max_steps": 2, "init": "x"}, {"max_steps": 3, "init": "y"}
    config = load_config(Config, ["max_steps=4"], base=base, values=values | {"loss": {"rgb": 8.0}})
    assert config == Config(max_steps=4, renderer="volsdf", init="y", loss=Loss(rgb=8.0))
    with pytest.raises(ConfigError, match="Unknown key `lerning` in the given values"):
        load_config(Config, values={"lerning": 1})

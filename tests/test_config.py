"""LoRAConfig: what it computes, and every setting that it refuses."""

import dataclasses
import pickle

import numpy as np
import pytest
from torch import nn

from minilora import LoRAConfig


def test_defaults_are_those_of_peft():
    config = LoRAConfig()
    assert (config.r, config.alpha, config.dropout, config.bias) == (8, 8, 0.0, "none")
    assert config.scaling == "standard"
    assert config.init == "default"
    assert not config.use_dora


def test_is_frozen_and_keeps_private_copies():
    targets, pattern = ["q"], {"q": 4}
    config = LoRAConfig(targets=targets, rank_pattern=pattern, modules_to_save=["head"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.r = 3
    targets.append("v")
    pattern["q"] = 99
    assert config.targets == ("q",)
    assert config.rank_for("a.q") == 4
    assert config.modules_to_save == ("head",)
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, r=3).rank_for("x") == 3


@pytest.mark.parametrize(
    ("scaling", "r", "alpha", "scale"),
    [("standard", 4, 8, 2.0), ("rslora", 4, 8, 4.0), ("standard", 8, 1, 0.125)],
)
def test_scale(scaling, r, alpha, scale):
    assert LoRAConfig(r=r, alpha=alpha, scaling=scaling).scale_for("any") == scale


def test_patterns_use_pefts_grammar():
    """A key is a regex for the end of the path, at a dot or as a whole; the first hit wins."""
    config = LoRAConfig(
        r=8,
        alpha=16,
        rank_pattern={"q_proj": 2, r"blocks\.0\..*": 3, "^proj": 5},
        alpha_pattern={r"layers\.\d+\.k": 1},
    )
    assert config.rank_for("blocks.0.q_proj") == 2
    assert config.rank_for("blocks.0.v_proj") == 3
    assert config.rank_for("enc.blocks.0.v_proj") == 3
    assert config.rank_for("my_q_proj") == 8
    assert config.rank_for("q_proj.inner") == 8
    assert config.rank_for("proj") == 5
    assert config.rank_for("a.proj") == 8
    assert config.alpha_for("x.layers.10.k") == 1
    assert config.alpha_for("x.layers.a.k") == 16
    assert config.scale_for("x.layers.1.k") == 1 / 8


def test_numpy_numbers_become_pythons():
    config = LoRAConfig(r=np.int64(4), alpha=np.float32(8), dropout=np.float64(0.5))
    assert [type(v) for v in (config.r, config.alpha, config.dropout)] == [int, float, float]


def test_large_but_sensible_numbers_pass():
    assert LoRAConfig(r=10**6, alpha=10**6).scale_for("x") == 1
    assert LoRAConfig(alpha=1e-300).alpha == 1e-300
    assert LoRAConfig(dropout=0).dropout == 0


REFUSED = [
    # setting, error, telling words
    ({"r": 0}, ValueError, ["r must be at least 1", "is 0", "targets"]),
    ({"r": -3}, ValueError, ["at least 1", "-3"]),
    ({"r": True}, TypeError, ["r must be a whole number", "True"]),
    ({"r": 4.0}, TypeError, ["whole number", "4.0"]),
    ({"r": "8"}, TypeError, ["whole number", "'8'"]),
    ({"r": None}, TypeError, ["whole number", "None"]),
    ({"r": np.float64(4)}, TypeError, ["whole number"]),
    ({"r": np.bool_(True)}, TypeError, ["whole number"]),
    ({"alpha": 0}, ValueError, ["alpha must be positive", "is 0", "disabled"]),
    ({"alpha": -1.5}, ValueError, ["positive", "-1.5"]),
    ({"alpha": float("inf")}, ValueError, ["finite", "inf"]),
    ({"alpha": float("nan")}, ValueError, ["finite", "nan"]),
    ({"alpha": 10**400}, ValueError, ["finite"]),
    ({"alpha": True}, TypeError, ["alpha must be a number", "True"]),
    ({"alpha": "16"}, TypeError, ["a number", "'16'"]),
    ({"alpha": None}, TypeError, ["a number"]),
    ({"dropout": 1}, ValueError, ["dropout", "below 1", "is 1", "0.1"]),
    ({"dropout": -0.1}, ValueError, ["at least 0", "-0.1"]),
    ({"dropout": float("nan")}, ValueError, ["dropout"]),
    ({"dropout": False}, TypeError, ["dropout must be a number", "False"]),
    ({"dropout": "no"}, TypeError, ["dropout", "'no'"]),
    ({"scaling": "sqrt"}, ValueError, ["scaling", "'standard'", "'rslora'", "'sqrt'"]),
    ({"scaling": True}, ValueError, ["scaling", "True"]),
    ({"bias": "lora"}, ValueError, ["bias", "'lora_only'", "'lora'"]),
    ({"bias": None}, ValueError, ["bias", "None"]),
    ({"init": "guassian"}, ValueError, ["'default'", "'gaussian'", "callable", "'guassian'"]),
    ({"init": "pissa_niter_4"}, ValueError, ["'pissa'", "'pissa_niter_4'"]),
    ({"init": True}, ValueError, ["init", "True"]),
    ({"use_dora": 1}, TypeError, ["use_dora must be True or False", "1"]),
    ({"use_dora": None}, TypeError, ["use_dora", "None"]),
    ({"targets": []}, TypeError, ["targets", "list", "[]"]),
    ({"targets": [1]}, TypeError, ["targets", "[1]"]),
    ({"targets": ["a", ""]}, TypeError, ["targets"]),
    ({"targets": ""}, TypeError, ["targets"]),
    ({"targets": "q_proj("}, ValueError, ["targets", "'q_proj('", "regular expression"]),
    ({"targets": "a{99999999999999}"}, ValueError, ["targets", "regular expression"]),
    ({"targets": "(" * 5000 + ")" * 5000}, ValueError, ["regular expression"]),
    ({"targets": int}, TypeError, ["type of module", "int"]),
    ({"targets": 5}, TypeError, ["targets must be", "all-linear", "5"]),
    ({"targets": None}, TypeError, ["targets", "None"]),
    ({"targets": {"a": 1}}, TypeError, ["targets"]),
    ({"targets": b"q"}, TypeError, ["targets"]),
    ({"exclude": [1]}, TypeError, ["exclude"]),
    ({"exclude": "["}, ValueError, ["exclude", "regular expression"]),
    ({"rank_pattern": [("q", 1)]}, TypeError, ["rank_pattern", "dict"]),
    ({"rank_pattern": {"q": 0}}, ValueError, ["rank_pattern['q']", "at least 1"]),
    ({"rank_pattern": {"q": True}}, TypeError, ["rank_pattern['q']", "whole number"]),
    ({"rank_pattern": {"": 1}}, TypeError, ["rank_pattern's key"]),
    ({"rank_pattern": {3: 1}}, TypeError, ["rank_pattern's key", "3"]),
    ({"rank_pattern": {"*": 1}}, ValueError, ["rank_pattern's key", "regular expression"]),
    ({"rank_pattern": {"(?i)q": 1}}, ValueError, ["rank_pattern's key", "regular expression"]),
    ({"alpha_pattern": {"q": -1}}, ValueError, ["alpha_pattern['q']", "positive"]),
    ({"alpha_pattern": {"q": float("nan")}}, ValueError, ["alpha_pattern['q']"]),
    ({"alpha_pattern": None}, TypeError, ["alpha_pattern", "dict"]),
    ({"modules_to_save": "head"}, TypeError, ["modules_to_save", "'head'", "list"]),
    ({"modules_to_save": 5}, TypeError, ["modules_to_save", "5"]),
    ({"modules_to_save": None}, TypeError, ["modules_to_save", "None"]),
    ({"modules_to_save": [nn.Linear]}, TypeError, ["modules_to_save"]),
    ({"modules_to_save": [""]}, TypeError, ["modules_to_save"]),
    ({"modules_to_save": (n for n in ["head"])}, TypeError, ["modules_to_save"]),
]


@pytest.mark.parametrize(("setting", "error", "words"), REFUSED)
def test_refuses(setting, error, words):
    with pytest.raises(error) as caught:
        LoRAConfig(**setting)
    for word in words:
        assert word in str(caught.value)
    assert type(caught.value) is error


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="lora_alpha"):
        LoRAConfig(lora_alpha=16)

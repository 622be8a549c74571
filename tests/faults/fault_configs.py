"""Settings that make no sense, that do not fit, or that nobody can read."""

from __future__ import annotations

import json
from functools import partial
from random import Random
from typing import Any

import torch
from fault_folders import (
    CONFIG_FILE,
    EITHER,
    LOADS,
    PREFIX,
    REFUSED,
    TENSOR_FILE,
    Draft,
    Expect,
    Kind,
    layer_keys,
    write_sparse,
)

PLAIN = ("plain", "PEFT plain")  # q_proj alone, r=3, alpha=6
GONE = object()  # the setting is left out
NAN, INF = float("nan"), float("inf")
JUNK: list[Any] = [None, True, "8", "", [], [1], {}, {"a": 1}, NAN, -1]

# Setting: (values that must be refused, values that may do).
WRONG: dict[str, tuple[list[Any], list[Any]]] = {
    "r": (
        [*JUNK, GONE, 0, 8.0, 1e9, 3.0, 2, 4, 10**9, 2**63, 10**15, 10**400, INF, "3", [3]],
        [],
    ),
    "lora_alpha": (
        [*JUNK, GONE, 0, INF, -INF, -0.0, 10**400, "6", "inf", False, [6]],
        [1e308, 5e-324, 2**63, 1e-9],
    ),
    "peft_type": ([*JUNK, GONE, "LOHA", "ADALORA", "lora", "LORA ", "L\u041eRA", ["LORA"]], []),
    "target_modules": (
        [
            *(3, True, [1], [None], [["q_proj"]], {"q_proj": 1}, "q_proj", ["q_porj"], [""]),
            *("(", "[", "*", "a{99999999999}", "(?P<x", "\\", "(?i", "((((" * 5000, ".*", "x"),
            *(["q_proj", "v_proj"], ["v_proj"], ["q_proj", ""], "all-linear", ["Q_PROJ"], NAN),
            *(["../q_proj"], ["*"], ["q_proj\0"], ["blocks.0.q_proj"], [".q_proj"], ["q_proj."]),
            *(["\ud800"], "\ud800", ["blocks"], ["blocks.0"], ["__class__"], ["x"] * 9999, -1),
        ],
        ["", [], {}, None, False, 0, GONE, ["q_proj", "q_proj"], r".*q_proj", "(?i).*Q_PROJ"],
    ),
    "exclude_modules": (
        [7, True, [1], [None], "(", {"a": 1}, ["q_proj"], ["0.q_proj"], ".*", r".*\.0\.q.*", [""]],
        [GONE, "", [], None, ["lm_head"], "x", ["../x"]],
    ),
    "rank_pattern": (
        [
            *([1], "x", 3, True, {"q_proj": 4}, {"q_proj": 0}, {"q_proj": "3"}, {"q_proj": None}),
            *({"q_proj": True}, {"(": 1}, {"": 3}, {".*": 7}, {"0.q_proj": 2}, {"q_proj": 10**9}),
            *({"q_proj": 3.0}, {"q_proj": [3]}, {"q_proj": -3}, {"*": 3}),
        ],
        [GONE, {}, None, [], {"nope": 5}, {"q_proj": 3}, {"q_proj)|(": 3}],
    ),
    "alpha_pattern": (
        [
            *([1], "x", 3, True, {"q_proj": 0}, {"q_proj": "3"}, {"q_proj": None}, {"q_proj": NAN}),
            *({"q_proj": INF}, {"(": 1}, {"": 1}, {"q_proj": True}, {"q_proj": -1}, {"*": 3}),
            *({"q_proj": [3]}, {"q_proj": {}}),
        ],
        [GONE, {}, None, [], {"nope": 5}, {"q_proj": 3}, {".*": 0.5}],
    ),
    "lora_dropout": (
        [2, 1, 1.0, -0.1, "x", "0.1", None, True, NAN, INF, [], {}, 10**400],
        [GONE, 0, 0.5, -0.0],
    ),
    "bias": (["some", None, True, 3, [], {}, "ALL", "all", "lora_only", ["none"], ""], [GONE]),
    "use_rslora": (["yes", "true", 1, [1], {"a": 1}, 0.5], [GONE, None, True, 0, "", []]),
    "use_dora": (["yes", "true", 1, [1], {"a": 1}, True], [GONE, None, 0, "", []]),
    "init_lora_weights": (
        [
            *("pissa_niter_4", "loftq", "lora_ga", "corda", "mystery", ["x"], {"a": 1}, 2, 0.5),
            *("PiSSA", "", "default", [True], NAN),
        ],
        [GONE, True, False, None, "gaussian", "eva", "orthogonal", "pissa", "olora"],
    ),
    "modules_to_save": (
        [
            *("head", 4, True, [1], [None], [""], [["head"]], {"head": 1}, ["head"], ["norm"]),
            *(["blocks"], ["blocks.0"], ["q_proj"], ["blocks.0.q_proj"], ["embed", "classifier"]),
        ],
        [GONE, None, [], "", ["classifier"], ["../x"], ["__class__"]],
    ),
}
# Settings of PEFT that change what the adapter computes, and one that nobody knows.
UNSUPPORTED: dict[str, list[Any]] = {
    "layers_to_transform": ["x", [0.5], {"a": 1}],
    "trainable_token_indices": [[1], {"embed": [1]}],
    "megatron_config": [{"a": 1}],
    "target_parameters": [["blocks.0.q_proj.weight"]],
    "alora_invocation_tokens": [[1, 2]],
    "lora_bias": [True],
    "use_qalora": [True],
    "layer_replication": [[[0, 1]]],
    "arrow_config": [{"top_k": 3}],
    "monteclora_config": [{"a": 1}],
    "something_new": [1, "x", {"a": 1}, [0]],
    "__class__": ["x"],
    "..": ["/etc/passwd"],
}
# Settings whose name in the error is another one.
ALSO = {
    "lora_alpha": ("alpha", "(3, 8)"),
    "target_modules": ("targets", "q_proj"),
    "exclude_modules": ("exclude", "q_proj"),
    "lora_dropout": ("dropout",),
    "r": ("r must", "(3, 8)", "lacks 'r'"),
    "rank_pattern": ("(3, 8)",),
    "use_dora": ("magnitude",),
}


def wrong_setting(setting: str, draft: Draft, index: int) -> Expect:
    refused, tolerable = WRONG[setting]
    values = refused + tolerable
    value = values[index % len(values)]
    if value is GONE:
        draft.config.pop(setting, None)
    else:
        draft.config[setting] = value
    words = (setting, *ALSO.get(setting, ()))
    if setting == "r":
        words = words[1:]  # a lone "r" is in every message
    return Expect(REFUSED if index % len(values) < len(refused) else EITHER, words)


class _Setting:
    """A kind of its own for each setting, so that the table shows which one fails."""

    def __init__(self, setting: str) -> None:
        self.setting = setting

    def __call__(self, draft: Draft, rng: Random, index: int) -> Expect:
        return wrong_setting(self.setting, draft, index)


def unsupported(draft: Draft, rng: Random, index: int) -> Expect:
    pairs = [(name, value) for name, values in UNSUPPORTED.items() for value in values]
    name, value = pairs[index % len(pairs)]
    draft.config[name] = value
    return Expect(REFUSED, (repr(name),))


def impossible_start(draft: Draft, rng: Random, index: int) -> Expect:
    """PiSSA or OLoRA at a rank, or on a layer, that they do not exist for; the tensors agree."""
    init = ["pissa", "olora"][index % 2]
    draft.config["init_lora_weights"] = init
    if index % 4 < 2:
        draft.tensors = {f"{PREFIX}embed.lora_embedding_A": torch.ones(3, 11)}
        draft.tensors[f"{PREFIX}embed.lora_embedding_B"] = torch.ones(8, 3)
        draft.config["target_modules"] = ["embed"]
        return Expect(REFUSED, (init, "embed"))
    for key in layer_keys(draft):
        draft.tensors[key] = torch.ones((9, 8) if "_A" in key else (8, 9))
    draft.config["r"] = 9
    return Expect(REFUSED, (init, "9"))


def magnitudes_missing(draft: Draft, rng: Random, index: int) -> Expect:
    """DoRA in the config, and no magnitudes, or wrong ones."""
    keys = [key for key in sorted(draft.tensors) if "magnitude" in key]
    for key in keys if index % 2 else [rng.choice(keys)]:
        del draft.tensors[key]
    return Expect(REFUSED, ("magnitude",))


LONG = 100_000


def _nested(depth: int) -> Any:
    """Lists in lists: 975 of them are just within what Python's JSON reads."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


LONG_SETTINGS: dict[str, list[Any]] = {
    "use_dora": [],
    "r": ["9" * LONG, [1] * LONG, 10**4000],
    "lora_alpha": ["9" * LONG, [1] * LONG],
    "peft_type": ["L" * LONG, ["LORA"] * LONG],
    "target_modules": [["q" * LONG], "q" * LONG, [f"x{i}" for i in range(5000)], "(" + "x" * LONG],
    "exclude_modules": ["(" + "x" * LONG, {"x" * LONG: 1}],
    "lora_dropout": ["x" * LONG],
    "bias": ["x" * LONG],
    "use_rslora": ["x" * LONG, {"x" * LONG: 1}],
    "init_lora_weights": ["x" * LONG],
    "modules_to_save": ["x" * LONG, [1] * LONG],
    "rank_pattern": ["x" * LONG, {"(" + "x" * LONG: 1}, {"x" * LONG: None}],
    "alpha_pattern": [{"x" * LONG: -1}],
    "y" * LONG: [1],
    "something_new": ["x" * LONG, {"a": [1] * LONG}],
}
for _name in ("r", "peft_type", "target_modules", "rank_pattern", "use_dora", "something_new"):
    LONG_SETTINGS[_name] += [_nested(60), _nested(900), _nested(975)]


def long_setting(draft: Draft, rng: Random, index: int) -> Expect:
    pairs = [(name, value) for name, values in LONG_SETTINGS.items() for value in values]
    name, value = pairs[index % len(pairs)]
    draft.config[name] = value
    words = {"y" * LONG: CONFIG_FILE, "target_modules": "targets", "exclude_modules": "exclude"}
    short = words.get(name, name.removeprefix("lora_"))
    return Expect(REFUSED, (short, CONFIG_FILE))


# Each needs more steps than there are nanoseconds in a day to find that it matches nothing.
SLOW = [
    "((((.+)+)+)+)+!",
    "(([a-z0-9_.]*)*)*!",
    "(.|[a-z]|\\w|.)*(.|\\w)*(.*)*(.*)*!",
    ".*" * 25 + "!",
]


def slow_regex(draft: Draft, rng: Random, index: int) -> Expect:
    pattern = SLOW[index // 2 % len(SLOW)]
    setting = ["target_modules", "rank_pattern", "exclude_modules", "alpha_pattern"][index % 4]
    draft.config[setting] = {pattern: 3} if "pattern" in setting else pattern
    return Expect(EITHER, (setting, setting.removesuffix("_modules")))


NOT_JSON: list[bytes] = [
    *(b"", b"{", b"}", b"{}}", b"[", b'"', b"nul", b"\0", b"\0" * 4096, b"\xff", b"{'r': 3}"),
    *(b'{"r": 3,}', b"// x\n{}", b'{"r": 3} {"r": 3}', b'{"r": 03}', b'{"r": 0x3}', b'{"r": +3}'),
    *(b"{r: 3}", b"version https://git-lfs.github.com/spec/v1\n", b"<html></html>", b"r: 3\n"),
    *(b"[" * 200_000, b'{"a":' * 200_000, b'{"r": ' + b"9" * 5000 + b"}", b"\x80\x04K\x01."),
]
NOT_AN_OBJECT = [b"[]", b"null", b"3", b'"x"', b"true", b"NaN", b"[[]]", b"-Infinity", b'["r"]']


def not_json(draft: Draft, rng: Random, index: int) -> Expect:
    texts = NOT_JSON + NOT_AN_OBJECT
    whole = json.dumps(draft.config).encode()
    if index < len(texts):
        draft.files[CONFIG_FILE] = texts[index]
    else:
        draft.files[CONFIG_FILE] = whole[: rng.randrange(len(whole))]
    return Expect(REFUSED, (CONFIG_FILE,))


def empty_object(draft: Draft, rng: Random, index: int) -> Expect:
    draft.plain()
    configs: list[dict[str, Any]] = [{}, {"peft_type": "LORA"}, {"": 1}, {"r": 3, "lora_alpha": 6}]
    draft.config = configs[index % 4]
    return Expect(REFUSED, ("peft_type", "lacks"))


def encodings(draft: Draft, rng: Random, index: int) -> Expect:
    draft.config["base_model_name_or_path"] = "caf\u00e9"
    text = json.dumps(draft.config, ensure_ascii=False)
    names = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-7", "utf-8-sig", "utf-8"]
    name = names[index % len(names)]
    draft.files[CONFIG_FILE] = text.encode(name)
    readable = name in ("utf-7", "utf-8-sig", "utf-8")
    return Expect(EITHER if readable else REFUSED, (CONFIG_FILE,))


def setting_twice(draft: Draft, rng: Random, index: int) -> Expect:
    """JSON lets a key stand twice; Python, and so PEFT, takes the last."""
    text = json.dumps(draft.config)
    again = ['"r": 3', '"r": 4', '"lora_alpha": 1', '"peft_type": "IA3"', '"r": "3"'][index % 5]
    text = text[:-1] + f", {again}}}" if index % 2 else f"{{{again}, {text[1:]}"
    draft.files[CONFIG_FILE] = text.encode()
    return Expect(EITHER)


def big_config(draft: Draft, rng: Random, index: int) -> Expect:
    """A config of many megabytes, or one that grows thirtyfold when it is read."""
    text = json.dumps(draft.config).encode()
    grows = text[:-1] + b', "x": [' + b"[]," * 5_000_000 + b"[]]}"
    if index % 3 == 0:
        draft.files[CONFIG_FILE] = partial(write_sparse, text, 300_000_000)
    elif index % 3 == 1:
        draft.files[CONFIG_FILE] = grows
    else:
        draft.metadata[CONFIG_FILE] = grows.decode()
        draft.files[CONFIG_FILE] = None
    return Expect(REFUSED, (CONFIG_FILE, TENSOR_FILE))


def many_patterns(draft: Draft, rng: Random, index: int) -> Expect:
    """Keys that each have to be tried on each layer, and compiled."""
    setting, value = [("rank_pattern", 1), ("alpha_pattern", 6)][index % 2]
    draft.config[setting] = {f"x{i}": value for i in range(2000)}
    return Expect(EITHER, (setting,))


# --- at random ---------------------------------------------------------------------------------


def any_value(rng: Random, depth: int = 0) -> Any:
    simple: list[Any] = [
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        8,
        0.5,
        1e400,
        NAN,
        2**70,
        "",
        "x",
        "q_proj",
        "none",
    ]
    simple += ["(", ".*", "LORA", "\ud800", "\0", "pissa", [], {}]
    if depth > 2 or rng.random() < 0.6:
        return rng.choice(simple)
    if rng.random() < 0.5:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = ["q_proj", "", "(", "x", "minilora_id", ".*"]
    return {rng.choice(keys): any_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def any_setting(draft: Draft, rng: Random, index: int) -> Expect:
    for _ in range(rng.choice([1, 1, 2, 5])):
        draft.config[rng.choice(sorted(draft.config))] = any_value(rng)
    return Expect(EITHER)


LIKELY = b'0123456789aeExz"{}[]:,.-+_\\\n \0\x7f\xff'


def any_bytes(draft: Draft, rng: Random, index: int) -> Expect:
    text = bytearray(json.dumps(draft.config).encode())
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(len(text))
        text[at : at + rng.randrange(2)] = bytes([rng.choice(LIKELY)])
    draft.files[CONFIG_FILE] = bytes(text)
    return Expect(EITHER)


# --- the config inside the tensor file ------------------------------------------------------------


def torn(draft: Draft, rng: Random, index: int) -> Expect:
    """The config belongs to another state than the tensors, which carry their own."""
    other = json.loads(draft.metadata[CONFIG_FILE])
    ids: list[Any] = ["0" * 16, None, 3, "", [], {}, NAN, True, GONE]
    other["auto_mapping"]["minilora_id"] = ids[index % len(ids)]
    if ids[index % len(ids)] is GONE:
        other["auto_mapping"] = rng.choice([None, [], "x", 3, {}])
    other.update(r=7, lora_alpha=70, target_modules=["v_proj"], use_dora=not other["use_dora"])
    draft.config = other
    if index % 3 == 0:
        draft.files[CONFIG_FILE] = None
    return Expect(LOADS)


def edited(draft: Draft, rng: Random, index: int) -> Expect:
    """The ids agree: what somebody wrote into the config by hand holds."""
    draft.config["lora_alpha"] = rng.choice([1, 0.25, 32])
    return Expect(LOADS)


def inside(draft: Draft, rng: Random, index: int) -> Expect:
    """The config inside the tensor file is broken."""
    texts = [t.decode() for t in NOT_JSON + NOT_AN_OBJECT if t.isascii() and b"\0" not in t]
    draft.metadata[CONFIG_FILE] = texts[index % len(texts)]
    if index % 2:
        draft.files[CONFIG_FILE] = None
    return Expect(REFUSED, ("config inside", CONFIG_FILE))


def inside_at_random(draft: Draft, rng: Random, index: int) -> Expect:
    own = json.loads(draft.metadata[CONFIG_FILE])
    for _ in range(rng.choice([1, 2, 5])):
        own[rng.choice(sorted(own))] = any_value(rng)
    draft.metadata[CONFIG_FILE] = json.dumps(own)
    if index % 2:
        draft.files[CONFIG_FILE] = None
    return Expect(EITHER)


OURS = ("plain", "full", "dora", "half")
KINDS = {
    **{
        f"setting {name}": Kind(_Setting(name), PLAIN, most=len(refused) + len(tolerable))
        for name, (refused, tolerable) in WRONG.items()
    },
    "a setting that is not supported": Kind(unsupported, most=20),
    "PiSSA or OLoRA that cannot be": Kind(impossible_start, PLAIN, most=16),
    "DoRA without magnitudes": Kind(magnitudes_missing, ("dora", "PEFT DoRA"), most=20),
    "a very long or deep setting": Kind(long_setting, PLAIN, most=50),
    "a regex that backtracks for ever": Kind(slow_regex, PLAIN, most=8),
    "a config that is not JSON": Kind(not_json),
    "a config that says little": Kind(empty_object, most=12),
    "a config in another encoding": Kind(encodings, most=16),
    "a setting twice": Kind(setting_twice, PLAIN, most=20),
    "a config of many megabytes": Kind(big_config, most=6),
    "very many patterns": Kind(many_patterns, ("deep",), most=4),
    "settings at random": Kind(any_setting),
    "config bytes at random": Kind(any_bytes),
    "a torn pair": Kind(torn, OURS, ours=True),
    "a config edited by hand": Kind(edited, OURS, most=16, ours=True),
    "a broken config inside the tensors": Kind(inside, OURS, ours=True),
    "settings inside at random": Kind(inside_at_random, OURS, ours=True),
}

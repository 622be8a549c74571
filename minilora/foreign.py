"""Adapters that other programs wrote: which program, and in PEFT's format where that is certain.

A format is recognised by the names of its tensors. What differs beside the names is the shape of
the factors, where the scale is kept, and what it means:

    PEFT        A (r, in), B (out, r)   s = alpha / r, in adapter_config.json
    mlx-lm      a (in, r), b (r, out)   s = scale, bare, in adapter_config.json
    kohya       down (r, in), up (out, r)   s = alpha / r, with alpha a tensor of each layer
    diffusers   down (r, in), up (out, r)   s = 1 where no alpha is stored
    torchtune   a (r, in), b (out, r)   s = alpha / r; rows of B for q and k in another order
    loralib     A (r, in), B (out, r)   s = alpha / r, with alpha in the program that trained it
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from minilora.bases import named_base
from minilora.config import LoRAConfig
from minilora.folder import CONFIG_FILE, MOST_CONFIG, TENSOR_FILE, AdapterError, check_home
from minilora.keys import PREFIX
from minilora.shards import Entry, Tensors, copied, model_tensors, write_adapter
from minilora.stored import EMBEDDINGS, UNREAD, own_config, plain_key, plain_settings
from minilora.targets import unwrapped

# Tensors of forms whose update is more than the product of two factors.
STRANGE = r"lora_mid|dora_scale|lora_magnitude|lora_E|lora_[AB](?:\.default)?\.bias|\.m$"
# What PEFT's loader would not know again in front of a module's path.
FRONTS = ("module.", "_fsdp_wrapped_module.", "language_model.")


@dataclass(frozen=True)
class Format:
    """A way of writing adapters.

    Attributes:
        name: The program's name. ``advice``: what to do with such a file.
        down: Pattern of the keys of A, and ``up``: of B; their group ``path`` is the module.
        turned: Whether the factors lie as A (in, r) and B (r, out).
        convertible: Whether ``convert`` is certain of what the numbers mean.
    """

    name: str
    advice: str
    down: str
    up: str
    turned: bool = False
    convertible: bool = True


CONVERT = "minilora convert writes it in PEFT's format"
FORMATS = (
    Format(
        "LyCORIS (LoHa, LoKr, OFT)",
        "its update is not a product of two factors; load it with the program that trained it",
        r"(?P<path>.+)\.(hada_w1_a|lokr_w1|lokr_w1_a|oft_blocks|oft_diag)",
        r"(?!)",
        convertible=False,
    ),
    Format(
        "kohya (sd-scripts)",
        f"diffusers' load_lora_weights reads it; {CONVERT}, given --base, since the names of the "
        "modules have lost their dots",
        r"(?P<path>lora_\w+?)\.lora_down\.weight",
        r"(?P<path>lora_\w+?)\.lora_up\.weight",
    ),
    Format(
        "diffusers (before PEFT)",
        CONVERT,
        r"(?P<path>.+?)[._](?:lora\.|lora_linear_layer\.)down\.weight",
        r"(?P<path>.+?)[._](?:lora\.|lora_linear_layer\.)up\.weight",
    ),
    Format(
        "kohya's names with dots (ComfyUI, ai-toolkit)",
        CONVERT,
        r"(?P<path>.+)\.lora_down\.weight",
        r"(?P<path>.+)\.lora_up\.weight",
    ),
    Format(
        "torchtune",
        "the rows of B of q_proj and k_proj are in another order than in transformers, so it is "
        "not converted here; let torchtune's checkpointer write PEFT's format",
        r"(?P<path>.+)\.lora_a\.weight",
        r"(?P<path>.+)\.lora_b\.weight",
        convertible=False,
    ),
    Format("mlx-lm", CONVERT, r"(?P<path>.+)\.lora_a", r"(?P<path>.+)\.lora_b", turned=True),
    Format(
        "loralib, or a state_dict of its kind",
        f"{CONVERT}, given --alpha, since the file does not say by what the update is multiplied",
        r"(?P<path>.+)\.lora_A",
        r"(?P<path>.+)\.lora_B",
    ),
    Format(
        "PEFT's factors",
        f"{CONVERT}; --alpha is needed where no {CONFIG_FILE} lies beside it",
        r"(?P<path>.+)\.lora_(?:A(?:\.default)?\.weight|embedding_A(?:\.default)?)",
        r"(?P<path>.+)\.lora_(?:B(?:\.default)?\.weight|embedding_B(?:\.default)?)",
    ),
)


@dataclass(frozen=True)
class ForeignFile:
    """A file that is not a sound PEFT folder, and what it is.

    Attributes:
        file: Where it lies. ``format``: None where no factors of a known kind are in it.
        settings: The config beside it, or {}. ``some``: a few keys, to be shown.
    """

    file: Path
    format: Format | None
    settings: dict[str, Any]
    tensors: Tensors

    @property
    def some(self) -> list[str]:
        names = list(self.tensors)
        if self.format is not None:
            patterns = self.format.down, self.format.up
            names = [n for n in names if any(re.fullmatch(p, n) for p in patterns)]
        return names[:3]

    def __str__(self) -> str:
        if not self.tensors:
            return f"{self.file} holds no tensors"
        if self.format is None:
            return (
                f"{self.file} holds {len(self.tensors)} tensors and no factors of a known kind: "
                "it looks like a whole model"
            )
        return f"an adapter in the format of {self.format.name}: {self.format.advice}"


def recognise(place: Path) -> ForeignFile:
    """Which program wrote the adapter in a folder, or in a safetensors file.

    Raises:
        AdapterError: There is no safetensors file, or it is damaged.
    """
    check_home(place)
    if place.is_dir():
        usual = (TENSOR_FILE, "adapters.safetensors", "pytorch_lora_weights.safetensors")
        there = sorted(file.name for file in place.glob("*.safetensors"))
        names = [name for name in usual if name in there] or there
        if not names:
            raise AdapterError(f"{place} holds no safetensors file")
        file, folder = place / names[0], place
    elif place.suffix == ".safetensors" and place.is_file():
        file, folder = place, place.parent
    else:
        raise AdapterError(f"{place} is neither a folder nor a safetensors file")
    tensors = Tensors([file])
    found = [f for f in FORMATS if any(re.fullmatch(f.down, name) for name in tensors)]
    return ForeignFile(file, found[0] if found else None, _settings(folder), tensors)


def _inside(file: Path, path: str) -> dict[str, Any]:
    """The settings of a layer's model that diffusers keeps in the file's header, or {}."""
    with safetensors.safe_open(file, framework="pt") as opened:
        value = _object((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    head = path.partition(".")[0] + "."
    return {k.removeprefix(head): v for k, v in value.items() if k.startswith(head)}


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file() or path.stat().st_size > MOST_CONFIG:
        return {}
    return _object(path.read_text(encoding="utf-8-sig"))


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# --- converting -----------------------------------------------------------------------------


def convert(
    source: Path,
    out: Path,
    *,
    base: Path | None = None,
    alpha: float | None = None,
    part: str | None = None,
) -> list[str]:
    """Write an adapter of another program, or one with odd keys, as a plain PEFT folder.

    Args:
        source: A folder or a safetensors file.
        out: The folder to write; one that is there is replaced whole.
        base: The base model's folder: named in the config, and asked for the modules' names where
            the file has lost the dots.
        alpha: The update is multiplied by alpha / r, whatever the file says of it.
        part: Which of several models in one file: ``"unet"``, ``"text_encoder"``.

    Returns:
        Sentences on what was done.

    Raises:
        AdapterError: What the numbers mean is not certain; nothing is written.
    """
    found = recognise(source)
    form = found.format
    if form is None or not form.convertible:
        raise AdapterError(f"{source} is not converted: {found}")
    names = list(found.tensors)
    paths: dict[str, dict[str, str]] = {}
    for which, pattern in (("A", form.down), ("B", form.up)):
        for name in names:
            if hit := re.fullmatch(pattern, name):
                paths.setdefault(hit["path"], {})[which] = name
    if lone := [path for path, pair in paths.items() if len(pair) < 2]:
        raise AdapterError(f"{lone[0]!r} has only one of its two factors")
    used = {name for pair in paths.values() for name in pair.values()}
    alphas = {n.removesuffix(".alpha"): n for n in names if n.endswith(".alpha")}
    if unknown := [n for path, n in alphas.items() if path not in paths]:
        raise AdapterError(f"{unknown[0]!r} belongs to none of the factors: the scale is unknown")
    left = [n for n in names if n not in used and n not in alphas.values()]
    said: list[str] = []
    if strange := [n for n in left if re.search(STRANGE, n)]:
        raise AdapterError(
            f"{strange[0]!r} belongs to a form of LoRA that is not converted here (DoRA, AdaLoRA, "
            "or a convolution in three factors)"
        )
    chosen = _chosen(list(paths), part)
    rename = _renaming(form, chosen, base)
    settings = dict(found.settings) if "r" in found.settings else _inside(found.file, chosen[0])
    if settings.get("peft_type") not in (None, "LORA"):
        raise AdapterError(f"{CONFIG_FILE} says {settings['peft_type']}, which is not LoRA")
    config, faults = own_config(settings) if settings and alpha is None else (None, [])
    if faults:
        raise AdapterError(faults[0])
    entries: dict[str, Entry] = {}
    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    for path in chosen:
        module = rename(path)
        if module in ranks:
            raise AdapterError(f"two layers of the file are {module!r}")
        A, B = (found.tensors.stored[paths[path][which]] for which in "AB")
        embedding = "lora_embedding_" in paths[path]["A"]
        if form.name.startswith(("mlx-lm", "loralib")):  # whose keys do not say it
            embedding = EMBEDDINGS.search(module) is not None
        if len(A.shape) < 2 or (form.turned and len(A.shape) != 2):
            raise AdapterError(f"{path!r}: factors of shape {A.shape} are not converted here")
        turn = (1, 0) if form.turned else (0, 1)
        r = A.shape[turn[0]]
        if B.shape[turn[1]] != r:
            raise AdapterError(f"{path!r}: A {A.shape} and B {B.shape}, which do not fit")
        ranks[module] = r
        scales[module] = _scale(form, found, alphas.get(path), module, r, config, alpha)
        end = "lora_embedding_{}" if embedding else "lora_{}.weight"
        for which, name in paths[path].items():
            key = plain_key(module, end.format(which))
            entries[key] = _entry(found.tensors, name, form.turned)
    for name in left:
        if settings and form.name.startswith("PEFT"):
            entries[PREFIX + _cleaned(name)] = copied(found.tensors, name)
        else:
            said.append(f"Left out: {name!r}, which is no factor.")
    write_adapter(out, _config(settings, ranks, scales, base, said), entries)
    times = ", ".join(sorted({f"{scale:g}" for scale in scales.values()}))
    written = f"{len(ranks)} layers of {form.name} written to {out} in PEFT's format"
    said.insert(0, f"{written}, the update multiplied by {times}.")
    if alpha is not None and (settings or alphas or found.settings):
        said.append(f"alpha is {alpha:g} as asked, whatever the file says.")
    return said


def _chosen(paths: list[str], part: str | None) -> list[str]:
    """The layers of one model, where a file of diffusers or kohya holds several."""
    parts = {path: _part(path) for path in paths}
    kinds = sorted({kind for kind in parts.values() if kind})
    if part is not None:
        chosen = [path for path, kind in parts.items() if kind == part]
        if not chosen:
            raise AdapterError(f"the file has no part {part!r}; it has {', '.join(kinds) or 'one'}")
        return chosen
    if len(kinds) > 1:
        raise AdapterError(
            f"the file adapts {' and '.join(kinds)}, which are models of their own: choose one "
            f"with --part {kinds[0]}"
        )
    return paths


_HEAD = re.compile(r"(lora_unet|lora_te\d?)_|(unet|text_encoder(?:_2)?)\.")


def _part(path: str) -> str | None:
    hit = _HEAD.match(path)
    names = {"lora_unet": "unet", "lora_te2": "text_encoder_2"}
    return (hit[2] or names.get(hit[1], "text_encoder")) if hit else None


def _cleaned(name: str) -> str:
    """A key of PEFT without its prefix, the adapter's name and what wrappers put in front."""
    name = unwrapped(name.removeprefix(PREFIX))
    while head := next((w for w in FRONTS if name.startswith(w)), None):
        name = name.removeprefix(head).removeprefix(PREFIX)
    return re.sub(r"\.modules_to_save\.default\.", ".", name)


def _renaming(form: Format, paths: list[str], base: Path | None) -> Callable[[str], str]:
    """From a layer's name in the file to the path of its module."""
    if form.name.startswith("kohya (") or any(p.startswith("lora_unet_") for p in paths):
        if base is None:
            raise AdapterError(
                "kohya's names have underscores where the modules' paths have dots, and only the "
                "model can tell which: give its folder with --base"
            )
        flat: dict[str, list[str]] = {}
        for name in model_tensors(base):
            if name.endswith(".weight"):
                module = name.removesuffix(".weight")
                flat.setdefault(module.replace(".", "_"), []).append(module)

        def looked_up(path: str) -> str:
            bare = _HEAD.sub("", path, count=1)
            hits = flat.get(bare, [])
            if len(hits) != 1:
                raise AdapterError(
                    f"{path!r} is {'no layer' if not hits else 'more than one layer'} of {base}"
                )
            return hits[0]

        return looked_up

    def plain(path: str) -> str:
        path = _HEAD.sub("", _cleaned(path), count=1)
        path = path.replace(".processor.", ".")
        if ".self_attn.to_" in path:  # a text encoder, whose layers have names of their own
            return re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", path)
        return re.sub(r"\.to_out$", ".to_out.0", path)

    return plain


def _scale(
    form: Format,
    found: ForeignFile,
    stored: str | None,
    module: str,
    r: int,
    config: LoRAConfig | None,
    alpha: float | None,
) -> float:
    """What the update of a module is multiplied by."""
    if alpha is not None:
        return alpha / r
    if stored is not None:
        return float(found.tensors[stored]) / r
    if form.name == "mlx-lm":
        values = found.settings.get("lora_parameters")
        scale = values.get("scale") if isinstance(values, dict) else None
        if not isinstance(scale, (int, float)):
            raise AdapterError(
                f"no scale in lora_parameters of {CONFIG_FILE}, so that what the update is "
                "multiplied by is unknown; give --alpha"
            )
        return float(scale)
    if config is not None:
        if config.rank_for(module) != r:
            raise AdapterError(
                f"{module!r} is of rank {r}, but {CONFIG_FILE} says {config.rank_for(module)}, so "
                "that its alpha cannot be trusted either; give --alpha"
            )
        return config.scale_for(module)
    if form.name.startswith(("diffusers", "kohya")) or (
        form.name.startswith("PEFT") and _part(next(iter(found.tensors)))
    ):
        return 1.0  # diffusers' own reading of a file without alpha
    raise AdapterError(
        f"nothing says what the update of {module!r} is multiplied by; give --alpha (the update is "
        "then multiplied by alpha / r)"
    )


def _entry(tensors: Tensors, name: str, turned: bool) -> Entry:
    plain = copied(tensors, name)
    if not turned:
        return plain
    return Entry(plain.dtype, plain.shape[::-1], lambda: [tensors[name].T.contiguous()])


KEPT = (
    *("base_model_name_or_path", "revision", "task_type", "fan_in_fan_out", "lora_dropout", "bias"),
    *("modules_to_save", "use_dora", "auto_mapping", "init_lora_weights", *UNREAD),
)
CHOOSING = ("exclude_modules", "layers_to_transform")  # which of the layers that the targets name


def _config(
    settings: dict[str, Any],
    ranks: dict[str, int],
    scales: dict[str, float],
    base: Path | None,
    said: list[str],
) -> dict[str, Any]:
    """PEFT's settings of what was found, with what earlier settings say beside that."""
    r = max(set(ranks.values()), key=list(ranks.values()).count)
    usual = max(set(scales.values()), key=list(scales.values()).count)
    new = plain_settings(r, usual * r, ranks, scales)
    new |= {name: settings[name] for name in KEPT if name in settings}
    named = settings.get("target_modules")
    if isinstance(named, list):
        missing = [t for t in named if not any(f".{p}".endswith(f".{t}") for p in ranks)]
        if missing:
            said.append(
                f"target_modules named {', '.join(map(repr, missing))}, of which the file has no "
                "factors: it does no longer."
            )
        named = [name for name in named if name not in missing]
        whole = not any(settings.get(name) for name in CHOOSING)
        if whole and all(any(f".{p}".endswith(f".{t}") for t in named) for p in ranks):
            new["target_modules"] = sorted(named)
    if base is not None:
        new |= named_base(base) | ({"task_type": old} if (old := new.get("task_type")) else {})
    return new

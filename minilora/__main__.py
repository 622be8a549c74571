"""The command ``minilora``: look at adapter folders and change them, without their models.

    minilora inspect my-adapter --base my-model
    minilora resize my-adapter smaller --rank 8

``python -m minilora`` is the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from minilora.checkpoints import extract, merge
from minilora.diagnosis import shown
from minilora.folder import CONFIG_FILE, TENSOR_FILE, AdapterError
from minilora.foreign import convert
from minilora.inspection import inspect, percent
from minilora.pages import page
from minilora.surgery import METHODS, add, resize

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ABOUT = """\
Look at LoRA adapter folders in PEFT's format, say in sentences what is wrong with them, and change
them. No model is built and nothing is downloaded; files are read one tensor at a time.

typical use:
  minilora inspect my-adapter                      what it is, layer by layer, and what is wrong
  minilora inspect my-adapter --base my-model      … beside the weights it will be added to
  minilora convert downloaded.safetensors mended   other programs' formats and odd keys to PEFT's
  minilora resize my-adapter small --rank 8        the nearest adapter of rank 8
  minilora add a=0.7 b=0.3 both                    the weighted sum of two adapters
  minilora merge my-model my-adapter merged        the update written into the model's weights
  minilora extract my-model tuned adapter --rank 16   the adapter nearest to a full fine-tuning

Start with inspect: where something can be mended, it names the command. minilora COMMAND --help
explains the words.
"""

WORDS = {
    "inspect": """\
An adapter adds to a weight W the update ΔW = factor · B A, with A of r rows and B of r columns.
  factor         alpha / r, or alpha / √r with rsLoRA: what B A is multiplied by
  ‖ΔW‖           size of the update: the root of the sum of its squared entries
  r 90%, r 99%   how many of its r directions hold that share of the sum of squares
  eff. rank      how many directions share the load, the small ones counted by what they weigh
with --base:
  ‖ΔW‖/‖W‖       the update beside the weight: in large models a few per cent, in small ones
                 often much more
  lost in bf16   what rounding takes of the update when it is merged in bfloat16
  intruders      directions among the ten largest of W + ΔW that W does not have, and how many a
                 random update of the same singular values would make
BROKEN: in PEFT it cannot work as it was meant. WARNING: it works, perhaps not as you think. NOTE:
worth knowing. minilora convert mends keys, other programs' formats, and a config that contradicts
the file; nothing mends what was not trained. Exit code 1 where anything is broken, 2 where
something could not be read.""",
    "resize": """\
Each layer's update is cut to the directions that hold most of its sum of squares: --rank 8 keeps
eight in every layer, --energy 0.99 as many as hold 99%. It needs no data and says what was lost;
what the task loses, only a measurement tells.

  minilora resize my-adapter small --rank 8
  minilora resize my-adapter my-adapter --energy 0.99 --force     in place""",
    "add": """\
exact  the sum of the weighted updates. Without --rank nothing is lost, and the ranks add up.
ties   keeps the largest entries of each (--density of them), and where signs differ those whose
       sign weighs more (arXiv 2306.01708)
dare   keeps entries at random (--density of them) and enlarges them (arXiv 2311.03099)

  minilora add english=0.7 law=0.3 both
  minilora add english=1 law=-0.5 less-law --rank 16""",
    "merge": """\
Config and tokenizer files are copied, so that the result is a model again. It says how much of
the update rounding took; --layers says it layer by layer.

  minilora merge my-model my-adapter merged --dtype bfloat16""",
    "extract": """\
Of the change of each weight matrix the best approximation of the rank is kept. Embeddings, norms
and biases that changed are named and left out.

  minilora extract my-model my-tuned-model adapter --rank 16""",
    "convert": """\
Recognised: mlx-lm, kohya (sd-scripts), diffusers' older keys, ComfyUI's, loralib's, and PEFT's
own keys with a wrapper's or an adapter's name in them or without their config. What is not
certain is refused with the reason.

  minilora convert adapters/ mended --base my-model
  minilora convert my-adapter mended --alpha 16     the config was wrong or is lost""",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 where ``inspect`` finds something broken; 2 where a command could not be carried out,
        with the reason on stderr and nothing written.
    """
    options = _parser().parse_args(words)
    try:
        return int(options.run(options))
    except (AdapterError, ValueError, OSError) as error:
        print(shown(f"minilora: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minilora: stopped; nothing was written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minilora", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = _command(commands, "inspect", _inspect, "what an adapter is and what is wrong with it")
    one.add_argument(
        "adapter", type=Path, nargs="+", help="PEFT's folder, or a file of another program"
    )
    one.add_argument("--brief", action="store_true", help="leave out the table of the layers")
    one.add_argument("--base", type=Path, help="the base model's folder: more can be said")
    one.add_argument(
        "--json", action="store_true", help="print everything as JSON, a list of reports"
    )
    one.add_argument("--html", type=Path, help="also write a page with pictures of the spectra")
    one.add_argument(
        "--intruders",
        action=argparse.BooleanOptionalAction,
        help="look for intruder directions: by default in weights of up to two million numbers",
    )

    one = _command(commands, "resize", _resize, "the nearest adapter of a smaller rank")
    one.add_argument("adapter", type=Path, help="PEFT's folder")
    one.add_argument("out", type=Path, help="the folder to write")
    size = one.add_mutually_exclusive_group(required=True)
    size.add_argument("--rank", type=int, help="this rank in every layer, at most")
    size.add_argument(
        "--energy", type=float, help="as many directions in each layer as hold this share (0.99)"
    )

    one = _command(commands, "add", _add, "the weighted sum of adapters of one base")
    one.add_argument(
        "parts",
        nargs="+",
        metavar="FOLDER=WEIGHT",
        help="an adapter and what it is multiplied by; 1 if left out",
    )
    one.add_argument("out", type=Path, help="the folder to write")
    one.add_argument("--rank", type=int, help="cut to this rank; without it the ranks add up")
    one.add_argument("--method", choices=METHODS, default="exact", help="default: exact")
    one.add_argument("--density", type=float, help="ties, dare: share that stays (0.2)")
    one.add_argument("--seed", type=int, default=0, help="dare: which entries stay")

    one = _command(commands, "merge", _merge, "write an adapter's update into its base's weights")
    one.add_argument("base", type=Path, help="the model's folder, in safetensors")
    one.add_argument("adapter", type=Path, help="PEFT's folder")
    one.add_argument("out", type=Path, help="the model's folder to write; must not exist")
    one.add_argument("--dtype", choices=DTYPES, help="of all weights; default: as in the base")
    one.add_argument("--layers", action="store_true", help="say for each layer what arrived")

    one = _command(commands, "extract", _extract, "the adapter nearest to a full fine-tuning")
    one.add_argument("base", type=Path, help="the model's folder before")
    one.add_argument("tuned", type=Path, help="the model's folder after")
    one.add_argument("out", type=Path, help="the adapter's folder to write")
    one.add_argument("--rank", type=int, required=True, help="of every layer, at most")
    one.add_argument("--targets", help="a regular expression for the modules' whole paths")

    one = _command(commands, "convert", _convert, "other programs' adapters, and odd keys, to PEFT")
    one.add_argument("source", type=Path, help="a folder or a safetensors file")
    one.add_argument("out", type=Path, help="the folder to write")
    one.add_argument(
        "--base", type=Path, help="the model's folder: named in the config; kohya needs it"
    )
    one.add_argument("--alpha", type=float, help="the update is multiplied by alpha / r")
    one.add_argument("--part", help="where a file adapts several models: unet, text_encoder, …")
    return parser


def _command(commands, name, run, what):  # type: ignore[no-untyped-def]
    parser = commands.add_parser(
        name,
        help=what,
        description=what[:1].upper() + what[1:] + ".",
        epilog=WORDS[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    if name in ("resize", "add", "extract", "convert"):
        parser.add_argument(
            "--force", action="store_true", help="replace the adapter that is in OUT already"
        )
    return parser


# --- the commands ---------------------------------------------------------------------------


def _inspect(options: argparse.Namespace) -> int:
    if options.html and len(options.adapter) > 1:
        raise ValueError("--html draws one adapter: give one folder")
    reports, unread = [], 0
    several = len(options.adapter) > 1
    for place in options.adapter:
        try:
            report = inspect(place, options.base, intruders=options.intruders, progress=_bars())
        except AdapterError as error:
            print(shown(f"minilora: {error}"), file=sys.stderr)
            unread += 1
            continue
        reports.append(report)
        if not options.json:
            print(report.text(table=not options.brief), end="\n" * (1 + several))
    if several and not options.json:
        for report in reports:
            print(f"{shown(Path(report.place).name):24} {report.verdict}")
    if options.html and reports:
        options.html.write_text(page(reports[0]), encoding="utf-8")
    if options.json:
        found = [report.to_dict() for report in reports]
        if options.brief:
            found = [{k: v for k, v in one.items() if k != "layers"} for one in found]
        print(json.dumps(found, indent=2))
    return 2 if unread else int(any(report.broken for report in reports))


def _check_free(options: argparse.Namespace) -> None:
    """Refuse to replace an adapter that nobody asked to be replaced."""
    there = [name for name in (TENSOR_FILE, CONFIG_FILE) if (options.out / name).exists()]
    if there and not options.force:
        raise AdapterError(f"{options.out} holds an adapter already; give --force to replace it")


def _say_broken(folders: Iterable[str]) -> None:
    """Name what is broken in adapters that go into a sum, in which it would not be seen."""
    for folder in folders:
        for finding in inspect(folder).findings:
            if finding.level == "broken":
                _say(f"{folder}: {finding.level.upper()} {finding.text}")


def _resize(options: argparse.Namespace) -> int:
    _check_free(options)
    _say(resize(options.adapter, options.out, options.rank, options.energy, progress=_bars()))
    return 0


def _add(options: argparse.Namespace) -> int:
    _check_free(options)
    if options.density is not None and options.method == "exact":
        raise ValueError("--density is for --method ties or dare")
    parts: dict[str, float] = {}
    for word in options.parts:
        folder, equals, weight = word.rpartition("=")
        if not equals:
            folder, weight = word, "1"
        try:
            value = float(weight)
        except ValueError:
            raise ValueError(f"{word!r}: give FOLDER=WEIGHT, such as adapter=0.7") from None
        if folder in parts:
            raise ValueError(f"{folder!r} is given twice; add their weights up")
        parts[folder] = value
    density = 0.2 if options.density is None else options.density
    _say_broken(parts)
    done = add(
        parts, options.out, options.rank, options.method,
        density=density, seed=options.seed, progress=_bars(),
    )  # fmt: skip
    _say(done)
    return 0


def _merge(options: argparse.Namespace) -> int:
    dtype = DTYPES[options.dtype] if options.dtype else None
    done = merge(options.base, options.adapter, options.out, dtype, progress=_bars())
    if options.layers:
        for layer in done.layers:
            _say(f"{layer.path}: ‖ΔW‖/‖W‖ {percent(layer.relative)}, lost {layer.lost:.1%}")
    _say(done)
    return 0


def _extract(options: argparse.Namespace) -> int:
    _check_free(options)
    done, said = extract(
        options.base, options.tuned, options.out, options.rank,
        targets=options.targets, progress=_bars(),
    )  # fmt: skip
    _say(done, *said)
    return 0


def _convert(options: argparse.Namespace) -> int:
    _check_free(options)
    said = convert(
        options.source, options.out, base=options.base, alpha=options.alpha, part=options.part
    )
    _say(*said)
    report = inspect(options.out)
    for finding in report.findings:  # converting mends keys and settings, and no numbers
        if finding.level != "note":
            _say(f"{finding.level.upper():8} {finding.text}")
    return int(report.broken)


def _say(*sentences: object) -> None:
    """Print each on lines of its own that fit a terminal."""
    for sentence in sentences:
        print(
            textwrap.fill(shown(str(sentence)), 100, break_long_words=False, break_on_hyphens=False)
        )


def _bars() -> bool:
    return sys.stderr.isatty()


if __name__ == "__main__":
    sys.exit(main())

"""`import minilora` needs torch, numpy and safetensors only."""

import subprocess
import sys

HEAVY = ["matplotlib", "sklearn", "scipy", "transformers", "peft", "tqdm", "IPython", "myst_nb"]


def test_import_needs_none_of_the_heavy_packages():
    code = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"  # importing one of them now fails
        "import minilora\n"
        "from torch import nn\n"
        "model = minilora.add_lora(nn.Sequential(nn.Linear(2, 2)), "
        "minilora.LoRAConfig(r=1, targets=['0']))\n"
        "print(minilora.summary(model))\n"
        f"print([n for n in {HEAVY!r} if sys.modules.get(n)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_public_names():
    import minilora

    contract = {
        "LoRAConfig",
        "add_lora",
        "remove_lora",
        "merge",
        "unmerge",
        "merged",
        "disabled",
        "lora_parameters",
        "lora_layers",
        "set_strength",
        "summary",
        "save",
        "load",
        "textbook",
    }
    assert contract <= set(minilora.__all__)
    assert all(hasattr(minilora, name) for name in minilora.__all__)

"""What the memory experiment trains: a decoder, in full or by way of adapters."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minilora
from minilora import LoRAConfig
from minilora.experiments.memory.profile import MemoryProfile
from minilora.lab.decoder import Decoder, DecoderConfig
from minilora.lab.measuring import optimizer_bytes
from minilora.lab.predicting import FLOOR, FULL, LORA, LORA_QV, QLORA, Method, Step
from minilora.lab.training import set_seed
from minilora.lab.transformer import BLOCK_LINEARS
from minilora.quantize import quantize_linears

HAS_PEFT = importlib.util.find_spec("peft") is not None


@dataclass(frozen=True)
class Arm:
    """One way to train; ``peft`` says that the adapters are PEFT's."""

    name: str
    kind: str
    method: Method
    checkpointing: bool = False
    peft: bool = False

    def step(
        self,
        model: DecoderConfig,
        batch: int,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Step:
        """A step of this arm on a decoder of these sizes, in numbers."""
        checkpointing = self.checkpointing
        return Step(model, self.method, batch, tokens, dtype, checkpointing, str(device))

    def at(self, profile: MemoryProfile, device: torch.device | str) -> Step:
        """Its step at the profile's size."""
        dtype = getattr(torch, profile.dtype)
        return self.step(profile.model, profile.sequences, profile.tokens, dtype, device)


def arms(profile: MemoryProfile) -> list[Arm]:
    """Every way to train that is weighed and timed."""
    r, half = profile.r, profile.dtype != "float32"
    lora, textbook = replace(LORA, r=r), replace(LORA, r=r, textbook=True)
    found = [
        Arm("full", "full", FULL),
        Arm("LoRA", "lora", lora),
        Arm("LoRA on Q, V", "lora", replace(LORA_QV, r=r)),
        Arm("QLoRA", "lora", replace(QLORA, r=r)),
        Arm("LoRA, textbook form", "lora", textbook),
        Arm("floor", "floor", FLOOR),
        Arm("full, checkpointing", "full", FULL, checkpointing=True),
        Arm("LoRA, checkpointing", "lora", lora, checkpointing=True),
    ]
    if half:
        found.append(Arm("full, master weights", "full", replace(FULL, masters=True)))
        if profile.peft and HAS_PEFT:
            found.append(Arm("LoRA by PEFT", "lora", textbook, peft=True))
    return found


class Masters:
    """AdamW on a float32 copy of every weight in half precision, one block after the other.

    A step that is too small for the weight's own format still moves the copy. In blocks, so that
    only one of them has float32 gradients at a time. Source: Micikevicius et al. 2017, arXiv
    1710.03740, section 3.1.
    """

    def __init__(self, model: Decoder, lr: float) -> None:
        parts = [*model.blocks, model.norm, model.head, model.embedding]
        weights = [[*part.parameters()] for part in parts] + [[model.positions]]
        self.pairs = [[(w, nn.Parameter(w.detach().float())) for w in part] for part in weights]
        self.optimizers = [
            torch.optim.AdamW([copy for _, copy in part], lr=lr, fused=True) for part in self.pairs
        ]

    @torch.no_grad()
    def step(self) -> None:
        for part, optimizer in zip(self.pairs, self.optimizers, strict=True):
            for weight, copy in part:
                assert weight.grad is not None
                copy.grad, weight.grad = weight.grad.float(), None
            optimizer.step()
            optimizer.zero_grad()
            for weight, copy in part:
                weight.copy_(copy)

    def nbytes(self) -> int:
        """The copies, and AdamW's state for them."""
        copies = sum(copy.nbytes for part in self.pairs for _, copy in part)
        return copies + sum(map(optimizer_bytes, self.optimizers))


class Training:
    """A model of an arm, and what it takes to train it on one batch of random tokens."""

    def __init__(self, arm: Arm, predicted: Step) -> None:
        set_seed(0)
        self.arm, self.predicted = arm, predicted
        self.device = torch.device(predicted.device)
        vocab = predicted.model.vocab
        with self.device:
            model = Decoder(predicted.model).to(predicted.dtype)
            self.ids = torch.randint(vocab, (predicted.batch, predicted.tokens))
            self.next_ids = torch.randint(vocab, (predicted.n,))
        self.model = set_up(model, arm)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.masters = Masters(model, lr=1e-4) if arm.method.masters else None
        self.optimizer: torch.optim.Optimizer | None = None
        if trained and not self.masters:
            self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def form(self) -> AbstractContextManager[None]:
        """In which form the adapters compute. A block that is computed anew needs the same one."""
        textbook = self.arm.method.textbook and not self.arm.peft
        return minilora.textbook() if textbook else nullcontext()

    def loss(self) -> Tensor:
        """The mean cross-entropy of the next tokens."""
        with self.form():
            if self.arm.kind == "floor":
                scores = self.model.read(self.model.embed(self.ids).detach().requires_grad_())
            else:
                scores = self.model(self.ids, self.arm.checkpointing)
            return F.cross_entropy(scores.flatten(0, 1), self.next_ids)

    def backward(self) -> None:
        """Forward and backward."""
        with self.form():
            self.loss().backward()

    def step(self) -> None:
        """Forward, backward, the optimizer's step; the gradients are given up."""
        self.backward()
        if self.masters:
            self.masters.step()
        elif self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def optimizer_bytes(self) -> int:
        if self.masters:
            return self.masters.nbytes()
        return optimizer_bytes(self.optimizer) if self.optimizer else 0


def set_up(model: Decoder, arm: Arm) -> Decoder:
    """Quantize, freeze and adapt the model as the arm says, in place; the same object."""
    method = arm.method
    if method.full:
        return model
    if method.quantized:
        quantize_linears(model, list(BLOCK_LINEARS))
    model.requires_grad_(False)
    if not method.targets:
        return model
    targets = list(method.targets)
    if not arm.peft:
        return minilora.add_lora(model, LoRAConfig(r=method.r, alpha=method.r, targets=targets))
    import peft

    config = peft.LoraConfig(r=method.r, lora_alpha=method.r, target_modules=targets)
    peft.get_peft_model(model, config)  # puts its layers into the model itself
    return model


def make(arm: Arm, profile: MemoryProfile, device: torch.device | str) -> Training:
    """The arm at the profile's size."""
    return Training(arm, arm.at(profile, device))


def steps(profile: MemoryProfile, device: torch.device | str) -> dict[str, Step]:
    """{arm: the step whose bytes and operations are predicted}."""
    return {arm.name: arm.at(profile, device) for arm in arms(profile)}

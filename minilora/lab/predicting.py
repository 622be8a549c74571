"""The bytes and the operations of a training step, predicted before anything is run.

The predictions are for `minilora.lab.decoder.Decoder`. They say what autograd keeps from the
forward pass, tensor by tensor, for full fine-tuning and for adapters, and from that the peak of a
step.
`minilora.lab.measuring` measures the same, on any model.

Source of the count: Korthikanti et al. 2022, arXiv 2205.05198, section 4.1, here for attention that
keeps no table of T × T, and for frozen layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from minilora.accounting import lora_size
from minilora.lab.decoder import DecoderConfig
from minilora.lab.transformer import BLOCK_LINEARS
from minilora.quantize import nf4_bytes

#: (out, in) of the six linear layers of a block, in widths.
SHAPES = dict.fromkeys(BLOCK_LINEARS, (1, 1)) | {"up_proj": (4, 1), "down_proj": (1, 4)}
QKV = BLOCK_LINEARS[:3]

# --- any model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bytes:
    """What a training step holds, in bytes, by the reason why it is held.

    Attributes:
        weights: Parameters and buffers, trained or frozen.
        gradients: One for each trained parameter, in its type.
        optimizer: What the optimizer keeps from step to step.
        activations: What the forward pass keeps for the backward pass, but for the next.
        logits: The scores of the vocabulary, kept for the loss.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """All of it, as if all were held at once.

        A step's peak may be lower, since gradients come as activations go, or higher, since the
        softmax needs more than one table of logits.
        """
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def model_bytes(model: nn.Module) -> Bytes:
    """Weights, gradients and AdamW's state of a model, predicted from its parameters alone.

    AdamW keeps two tensors like each trained parameter, and a step count of 4 bytes. Activations
    and logits are 0 here. What is neither parameter nor buffer is not seen, such as the weights
    that ``merge`` keeps aside. Nothing is allocated.
    """
    parameters, buffers = set(model.parameters()), set(model.buffers())
    trained = [p for p in parameters if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    return Bytes(
        weights=sum(tensor.nbytes for tensor in parameters | buffers),
        gradients=gradients,
        optimizer=2 * gradients + 4 * len(trained),
    )


def training_flops(base: int, tokens: int, adapter: int | None = None) -> int:
    """Floating-point operations of the matrix products of one training step.

    A product of one token with a matrix of P numbers takes 2P: a multiplication and an addition
    for each. Forward is one such product, the gradient of its input another, the gradient of the
    matrix a third. A frozen matrix has no third. So training all takes 6 · base · tokens, and
    training an adapter (4 · base + 6 · adapter) · tokens. Attention's own products, which no
    matrix of parameters takes part in, are left out.

    Args:
        base: Numbers in the model's matrices; an embedding is looked up, and does not count.
        tokens: Tokens in the step.
        adapter: Numbers in the adapter's matrices; None for full fine-tuning.

    Source: the counts of Kaplan et al. 2020, arXiv 2001.08361, section 2.1.
    """
    if adapter is None:
        return 6 * base * tokens
    return (4 * base + 6 * adapter) * tokens


# --- predicted ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """How a `Decoder` is trained.

    Attributes:
        targets: The layers of every block that have an adapter; None for full fine-tuning. With
            none at all, only the gradient of the embedded tokens is computed: what training
            anything below the blocks needs, and the floor of LoRA's time.
        r: Rank.
        quantized: Whether the six layers of every block are stored in NF4.
        textbook: Whether the adapters compute by the paper's formula, as PEFT's do.
        trains_a: Whether A is trained; frozen, it is LoRA-FA.
        masters: Whether weights in half precision are trained by way of a float32 copy.
    """

    targets: tuple[str, ...] | None = None
    r: int = 8
    quantized: bool = False
    textbook: bool = False
    trains_a: bool = True
    masters: bool = False

    @property
    def full(self) -> bool:
        return self.targets is None

    def adapts(self, *names: str) -> bool:
        return any(name in names for name in self.targets or ())

    def keeps_input(self, *names: str) -> bool:
        """Whether one of the layers needs its input: for the gradient of its weight, or of A."""
        return self.full or (self.trains_a and self.adapts(*names))


FULL = Method()
LORA = Method(BLOCK_LINEARS)
LORA_QV = Method(("q_proj", "v_proj"))
QLORA = Method(BLOCK_LINEARS, quantized=True)
FLOOR = Method(())


@dataclass(frozen=True)
class Step:
    """One training step of a `Decoder` with AdamW, of which everything is predicted.

    Attributes:
        model: Its sizes.
        method: How it is trained.
        batch: Sequences in the step. ``tokens``: in each of them.
        dtype: Of the base: torch.float32 or torch.bfloat16. Adapters are float32.
        checkpointing: Whether a block keeps its input only, and is computed once more.
        device: As torch names it, "cpu" or "cuda" or "cuda:1". For half precision CUDA keeps the
            statistics of a normalisation in float32, the CPU in the type of its input.
    """

    model: DecoderConfig
    method: Method
    batch: int
    tokens: int
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    device: str = "cpu"

    @property
    def n(self) -> int:
        """Tokens in the step."""
        return self.batch * self.tokens

    @property
    def wide(self) -> int:
        """Bytes of one tensor (n, width)."""
        return self.n * self.model.width * self.dtype.itemsize

    @property
    def _statistics(self) -> int:
        # The mean of each token, and one over its deviation.
        cuda = torch.device(self.device).type == "cuda"
        return 2 * self.n * (4 if cuda else self.dtype.itemsize)

    def adapters(self) -> int:
        """Numbers in all adapters, A and B."""
        shapes = [SHAPES[name] for name in self.method.targets or ()]
        width, r = self.model.width, self.method.r
        return self.model.layers * sum(
            lora_size(out * width, into * width, r) for out, into in shapes
        )

    def _reached(self, first: bool) -> dict[str, bool]:
        """{layer: whether its input has a gradient}, and so passes one on."""
        method = self.method
        enters = method.full or not method.targets or not first
        attends = enters or method.adapts(*QKV)
        middle = attends or method.adapts("o_proj")
        bends = middle or method.adapts("up_proj")
        return dict(zip(BLOCK_LINEARS, (enters, enters, enters, attends, middle, bends)))

    def block(self, first: bool = False) -> dict[str, int]:
        """{what: bytes} that one block keeps from the forward pass for the backward pass.

        A tensor that two operations need is listed once. The ``first`` block of a model with a
        frozen embedding gets an input without a gradient, and keeps less.
        """
        method, n, b = self.method, self.n, self.dtype.itemsize
        wide, exact = self.wide, max(b, 4)  # exact: bytes of a number of A or B
        apart = method.textbook and b < 4  # then each adapter keeps a float32 copy of its input
        reached = self._reached(first)
        enters, attends = reached["q_proj"], reached["o_proj"]
        middle, bends = reached["up_proj"], reached["down_proj"]
        kept: dict[str, int] = {}

        def keep(name: str, needed: bool, size: int) -> None:
            if needed and size:
                kept[name] = size

        keep("norm1 in", enters, wide + self._statistics)
        keep("q, k, v in", method.keeps_input(*QKV) and not apart, wide)
        keep("q", attends, wide)
        keep("k", attends, wide)
        keep("v", attends, wide)
        keep("o in", attends or (method.keeps_input("o_proj") and not apart), wide)
        keep("attention sums", attends, 4 * n * self.model.heads)  # float32, one a query and head
        keep("norm2 in", middle, wide + self._statistics)
        keep("up in", method.keeps_input("up_proj") and not apart, wide)
        keep("GELU in", bends, 4 * wide)
        keep("down in", method.keeps_input("down_proj") and not apart, 4 * wide)

        narrow = copies = inputs = 0
        for name in method.targets or ():
            d_out, d_in = (side * self.model.width for side in SHAPES[name])
            narrow += n * method.r * (exact if apart else b)  # for the gradient of B
            needs_b = reached[name] or method.trains_a  # to go further back than B
            if apart:
                inputs += n * d_in * exact * method.trains_a
            elif b < 4:
                copies += method.r * b * (d_out * needs_b + d_in * reached[name])
            elif not (method.textbook or method.quantized or method.r == 1):
                copies += method.r * b * d_out * needs_b  # B transposed, laid out anew
        keep("A x", True, narrow)
        keep("copies of A, B", True, copies)
        keep("float32 inputs", True, inputs)
        return kept

    def bytes(self) -> Bytes:
        """What the step holds, by the reason for it. Exact on the CPU."""
        model, method, n, b = self.model, self.method, self.n, self.dtype.itemsize
        if method.full:
            weights = gradients = model.parameters * b
            trained = 16 * model.layers + 5
        else:
            shapes = [SHAPES[name] for name in method.targets or ()]
            b_only = model.layers * method.r * model.width * sum(out for out, _ in shapes)
            gradients = max(b, 4) * (self.adapters() if method.trains_a else b_only)
            trained = model.layers * len(shapes) * (1 + method.trains_a)
            weights = model.parameters * b + max(b, 4) * self.adapters()
            if method.quantized:
                numbers = [out * into * model.width**2 for out, into in SHAPES.values()]
                weights -= model.layers * sum(b * m - nf4_bytes(m) for m in numbers)
        optimizer = 2 * gradients + 4 * trained
        if method.masters:  # the copies, and moments of their type
            optimizer = 12 * model.parameters + 4 * trained
        blocks = [self.wide] * model.layers
        if not self.checkpointing:
            blocks = [sum(self.block(first=layer == 0).values()) for layer in range(model.layers)]
        activations = sum(blocks) + self.wide + self._statistics  # of the last normalisation
        if method.full:
            activations += self.wide + 8 * n  # the head's input, and the numbers of the tokens
        # The log-softmax, the numbers of the right tokens, and how many they are.
        logits = n * model.vocab * b + 8 * n + b
        return Bytes(weights, gradients, optimizer, activations, logits)

    def peak(self) -> int:
        """The most bytes held at any moment of a step, the weights included.

        The largest of: the way back through the softmax, with every activation there and three
        tables of logits; the middle of the last block or the first; the end, with all gradients.
        """
        model, b, held = self.model, self.dtype.itemsize, self.bytes()
        full = self.method.full
        table, block_size = self.n * model.vocab * b, (12 * model.width + 13) * model.width
        moments = [held.activations + 3 * table, held.gradients + self.wide]
        if self.method.masters:  # one part's gradients in float32
            moments.append(held.gradients + 4 * max(block_size, model.vocab * model.width))
        block = sum(self.block().values())
        # Gradients of GELU's output and input, twice where an adapter adds to them.
        passing = 5 * self.wide + 4 * model.width**2 * b if full else 9 * self.wide
        if self.method.quantized:  # or a weight that is being unpacked, 9 bytes a number
            passing = max(passing, 5 * self.wide + 9 * 4 * model.width**2)
        for layer in (0, model.layers - 1):
            below = layer * (self.wide if self.checkpointing else block)
            done = model.layers - 1 - layer  # blocks whose gradients are there
            above = held.gradients * done // model.layers
            if full:
                above = b * (done * block_size + (model.vocab + 2) * model.width)
            moments.append(below + block + above + passing)
        return held.weights + held.optimizer + max(moments)

    def flops(self) -> int:
        """Floating-point operations of the matrix products, attention's included.

        Without the second forward pass of checkpointing.
        """
        model, method, n = self.model, self.method, self.n
        attention = 4 * n * self.tokens * model.width  # forward, in each block
        total = 4 * n * model.vocab * model.width + 2 * n * model.vocab * model.width * method.full
        for layer in range(model.layers):
            reached = self._reached(first=layer == 0)
            total += attention
            if reached["o_proj"]:
                total += attention * 5 // 2  # five products where forward has two
            for name, (out, into) in SHAPES.items():
                # Forward, the gradient of the input, the gradient of the weight.
                total += 2 * n * out * into * model.width**2 * (1 + reached[name] + method.full)
                if method.adapts(name):
                    on = reached[name]
                    times_a, times_b = 1 + on + method.trains_a, 2 + (on or method.trains_a)
                    total += 2 * n * method.r * model.width * (into * times_a + out * times_b)
        return total

"""The small transformer: shapes, attention that can be looked at, and who sees what."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minilora.lab.transformer import (
    BLOCK_LINEARS,
    Attention,
    TransformerClassifier,
    TransformerConfig,
)


@pytest.mark.parametrize(
    "config",
    [
        TransformerConfig(),
        TransformerConfig(image_size=(8, 16), patch_size=4, classes=19),
        TransformerConfig(image_size=(6, 9), patch_size=3, channels=3, width=12, heads=2, layers=1),
    ],
)
def test_shapes(config):
    model = TransformerClassifier(config)
    x = torch.rand(5, config.channels, *config.image_size)
    tokens = 1 + config.patches
    assert model(x).shape == (5, config.classes)
    assert model.embed(x).shape == (5, tokens, config.width)
    maps = model.attention_maps(x)
    assert maps.shape == (config.layers, 5, config.heads, tokens, tokens)
    assert torch.allclose(maps.sum(-1), torch.ones(maps.shape[:-1]), atol=1e-5)
    assert (maps >= 0).all()


def test_every_block_has_the_six_linears():
    model = TransformerClassifier(TransformerConfig(layers=2))
    found = [
        path.split(".")[-1] for path, m in model.blocks.named_modules() if type(m) is nn.Linear
    ]
    assert found == [*BLOCK_LINEARS, *BLOCK_LINEARS]


def test_attention_is_scaled_dot_product_attention():
    torch.manual_seed(0)
    attention = Attention(12, 3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = (
        proj(x).reshape(2, 5, 3, 4).transpose(1, 2)
        for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 12)
    assert torch.allclose(attention(x), attention.o_proj(mixed), atol=1e-12)


def test_patches_are_read_row_by_row():
    """A change in one patch changes the token of that patch and no other, before the blocks."""
    model = TransformerClassifier(TransformerConfig(image_size=(4, 6), patch_size=2))
    x = torch.zeros(1, 1, 4, 6)
    changed = x.clone()
    changed[0, 0, 2, 4] = 1.0  # second row of patches, third in it: patch 5 of 0..5
    moved = (model.embed(changed) - model.embed(x)).abs().sum(-1)[0]
    assert moved.nonzero().flatten().tolist() == [6]  # the class token is token 0


def test_the_class_token_sees_every_patch():
    torch.manual_seed(0)
    model = TransformerClassifier()
    x = torch.rand(1, 1, 8, 8, requires_grad=True)
    model(x)[0, 3].backward()
    assert (x.grad != 0).all()


def test_the_last_block_computes_what_the_head_reads_and_no_more():
    torch.manual_seed(0)
    model = TransformerClassifier().double()
    x = torch.randn(3, 1, 8, 8).double()
    seen = []
    model.blocks[-1].feed_forward.register_forward_hook(lambda _, ins, __: seen.append(ins[0]))
    y = model(x)
    assert [t.shape for t in seen] == [(3, 1, 48)]
    tokens = model.embed(x)
    for block in model.blocks:
        tokens = block(tokens)
    assert tokens.shape == (3, 17, 48)
    torch.testing.assert_close(y, model.head(model.norm(tokens[:, 0])), rtol=0, atol=1e-12)


def test_batches_do_not_mix():
    torch.manual_seed(0)
    model = TransformerClassifier().double()
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    assert torch.allclose(model(x)[2:3], model(x[2:3]), atol=1e-12)


def test_vmap_batches_several_models():
    """Whole models can be stacked: nothing in the forward stops torch.func."""
    models = [TransformerClassifier(TransformerConfig(width=8, heads=2, layers=1)) for _ in "ab"]
    parameters, _ = torch.func.stack_module_state(models)
    x = torch.rand(3, 1, 8, 8)

    def forward(p):
        return torch.func.functional_call(models[0], p, (x,))

    both = torch.func.vmap(forward)(parameters)
    assert torch.allclose(both, torch.stack([model(x) for model in models]), atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"width": 10, "heads": 4}, "heads"),
        ({"image_size": (8, 9)}, "patch_size"),
        ({"image_size": (0, 8)}, "tile"),
        ({"layers": 0}, "layers"),
        ({"ffn_factor": 0}, "ffn_factor"),
    ],
)
def test_impossible_sizes_are_refused(sizes, says):
    with pytest.raises(ValueError, match=says):
        TransformerConfig(**sizes)


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (2, 3, 8, 8), (2, 1, 8, 16)])
def test_wrong_pictures_are_refused(shape):
    with pytest.raises(ValueError, match=r"pictures must have shape \(N, 1, 8, 8\)"):
        TransformerClassifier()(torch.zeros(shape))

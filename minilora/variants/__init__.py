"""Relatives of LoRA, one idea a file; nothing here is imported until it is asked for::

    from minilora.variants.loraplus import loraplus_groups    # LoRA+: B learns faster
    from minilora.variants.lora_fa import freeze_A            # LoRA-FA: only B learns
    from minilora.variants.vera import add_vera               # VeRA: two vectors a layer
    from minilora.variants.tiny_lora import add_tiny_lora     # TinyLoRA: a handful for all layers
    from minilora.variants.adalora import add_adalora         # AdaLoRA: rank where it matters
    from minilora.variants import loftq                       # LoftQ: a start for a rounded base
    from minilora.variants import gradient_start              # a start along the first gradient
    from minilora.variants.bitfit import add_bitfit           # baseline: the biases alone
    from minilora.variants.adapters import add_adapters       # baseline: small serial networks
    from minilora.variants.head import train_head_only        # baseline: the output layer alone

DoRA, PiSSA, OLoRA and MiLoRA are settings of ``LoRAConfig``: ``use_dora=True`` and ``init``.
"""

"""The checks that the exercises call.

Each chapter's exercises hand their function to one of these. A check prints ``not attempted yet``
for a stub, prints ``passed: …`` for a right answer, and raises ``AssertionError`` for a wrong one,
with a message that names the misconception behind it where it can be recognised.
"""

from minilora.exercises.ch01 import (
    check_addition_factors,
    check_largest_saving_rank,
    check_outer_product,
    check_peel_once,
)
from minilora.exercises.ch02 import (
    check_errors_from_singular_values,
    check_leading_triplet,
    check_pca_scores,
    check_rank_for_error,
    check_truncate,
)
from minilora.exercises.ch03 import (
    check_blur_singular_values,
    check_effective_rank,
    check_randomized_svd,
    check_stable_rank,
    check_worth_keeping,
)
from minilora.exercises.ch04 import (
    check_balance,
    check_floor,
    check_lora_gradients,
    check_many_examples,
    check_weighted_floor,
)
from minilora.exercises.ch05 import (
    check_attention,
    check_block_numbers,
    check_causal_attention,
    check_cross_entropy,
    check_layer_norm,
)
from minilora.exercises.ch06 import (
    check_chance_share,
    check_rank_for_share,
    check_relative_change,
    check_stored_numbers,
    check_truncate_update,
)
from minilora.exercises.ch07 import (
    check_lora_embedding,
    check_lora_forward,
    check_mean_adapters,
    check_orthonormal_b,
    check_strict_load,
)
from minilora.exercises.ch08 import (
    check_budget,
    check_choose_rate,
    check_lora_count,
    check_paired_interval,
)
from minilora.exercises.ch09 import (
    check_after_decay,
    check_needs_rung,
    check_rate_groups,
    check_same_run_sgd,
    check_standard_alpha,
)
from minilora.exercises.ch10 import (
    check_block_ranks,
    check_one_block,
    check_rank_for_budget,
    check_rearrangement_rank,
)
from minilora.exercises.ch11 import (
    check_checkpoint_every,
    check_kept_inputs,
    check_step_share,
    check_training_bytes,
)

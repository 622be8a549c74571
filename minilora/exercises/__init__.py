"""The checks that the exercises call.

Each chapter's exercises hand their function to one of these. A check prints ``not attempted yet``
for a stub, prints ``passed: …`` for a right answer, and raises ``AssertionError`` for a wrong one,
with a message that names the misconception behind it where it can be recognised.
"""

from minilora.exercises.ch01 import (
    check_count_crosses,
    check_largest_saving_rank,
    check_predicted_ranks,
    check_square_factors,
    check_with_identity,
)
from minilora.exercises.ch02 import (
    check_errors_from_singular_values,
    check_leading_triplet,
    check_pca_scores,
    check_predicted_values,
    check_rank_for_error,
)
from minilora.exercises.ch03 import (
    check_randomized_svd,
    check_shuffled_rival,
    check_stable_rank_of_noise,
    check_two_counts,
    check_worth_keeping,
)
from minilora.exercises.ch04 import (
    check_balance,
    check_level_losses,
    check_predicted_rank,
    check_three_factors,
)
from minilora.exercises.ch05 import (
    check_block_numbers,
    check_causal_attention,
    check_cross_entropy,
    check_look_back,
    check_loss_without_looking,
)
from minilora.exercises.ch06 import (
    check_first_share,
    check_gradient_ranks,
    check_rank_for_share,
    check_stored_numbers,
)
from minilora.exercises.ch07 import (
    check_layer_test,
    check_lora_embedding,
    check_mean_adapters,
    check_moved_numbers,
    check_strict_load,
)
from minilora.exercises.ch08 import (
    check_budget,
    check_choose_rate,
    check_draws_needed,
    check_paired_interval,
)
from minilora.exercises.ch09 import (
    check_cliff_rate,
    check_needs_rung,
    check_rate_groups,
    check_rates_at_scale,
    check_same_run_sgd,
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
    check_llama_bytes,
    check_no_cheaper_rank,
)
from minilora.exercises.ch12 import (
    check_checkpoint_bytes,
    check_fused_adapter,
    check_llama_adapter,
    check_scale_of_config,
)
from minilora.exercises.ch13 import (
    check_bits_per_byte,
    check_least_rank,
    check_random_rival,
    check_turned_down,
)
from minilora.exercises.ch14 import (
    check_adapter_bytes,
    check_guided_change,
    check_one_adapter,
    check_one_step,
)
from minilora.exercises.ch15 import (
    check_format_bits,
    check_largest_rank,
    check_loftq_start,
    check_round_block,
)
from minilora.exercises.ch16 import (
    check_best_start,
    check_equal_sizes,
    check_pissa_rate,
)
from minilora.exercises.ch17 import (
    check_merged_weights,
    check_room_on_card,
    check_summed_chance,
    check_ties,
)
from minilora.exercises.ch18 import (
    check_bytes_sent,
    check_cut_factors,
    check_hiding_tokens,
    check_part_weights,
)
from minilora.exercises.ch19 import (
    check_disguise,
    check_flat_rank,
    check_least_episodes,
    check_true_alarms,
)

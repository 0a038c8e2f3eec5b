"""The losses as pure functions, in float32 or wider, reductions and factors of T² written out.

Shape letters: B rows, K classes, D features. `teacher` is whatever is imitated: a frozen network, a peer, a
deeper head.
"""

from __future__ import annotations

from kdcompress.methods.losses.adversarial import (
    discriminator_loss,
    imitation_loss,
    reverse_gradient,
    side_cross_entropy,
)
from kdcompress.methods.losses.collaborative import (
    error_products,
    generalization_weights,
    minimum_logits,
    mixture_weights,
    most_certain_logits,
)
from kdcompress.methods.losses.contrast import (
    bank_products,
    bank_scores,
    embedding,
    noise_contrastive,
    row_products,
)
from kdcompress.methods.losses.correlation import inter_class, intra_class
from kdcompress.methods.losses.decoupled import nckd, tckd
from kdcompress.methods.losses.density_ratio import density_ratio
from kdcompress.methods.losses.designed import designed_labels
from kdcompress.methods.losses.energy import energy_difference, map_similarity_difference
from kdcompress.methods.losses.features import active_squared_sum, euclidean
from kdcompress.methods.losses.geometry import mutual_angles, mutual_distances
from kdcompress.methods.losses.joint import joint_labels, joint_to_class_logits
from kdcompress.methods.losses.logits import cross_entropy, guarded_kl, kl, soft_cross_entropy
from kdcompress.methods.losses.maps import (
    activation_boundaries,
    attention_transfer,
    mse,
    similarity_preserving,
)
from kdcompress.methods.losses.mixing import gate_weights, mix_logits, peer_attention
from kdcompress.methods.losses.mutual_contrast import (
    ContrastColumns,
    bank_columns,
    batch_columns,
    class_contrast,
    match,
    mixed_logits,
    similarities,
    similarity_imitation,
)
from kdcompress.methods.losses.pairing import Pair, pair, pairs, pairs_of_one_size, stage_maps
from kdcompress.methods.losses.partners import next_of_class
from kdcompress.methods.losses.pretext import (
    own_image_cross_entropy,
    own_images,
    rotation_rows,
    turned_cosines,
    turned_views,
)
from kdcompress.methods.losses.queue import own_column_cross_entropy, queue_logits, unit_rows
from kdcompress.methods.losses.ramps import exponential_ramp
from kdcompress.methods.losses.relations import (
    cosine_alignment,
    negative_cosine,
    relation_kl,
    squared_alignment,
    supervised_contrast,
)
from kdcompress.methods.losses.review import hierarchical_context
from kdcompress.methods.losses.rotations import four_rotations
from kdcompress.methods.losses.selection import masked_kl, rank_of, top_ratio_correct
from kdcompress.methods.losses.soft_labels import (
    probabilities,
    renormalised_soft_labels,
    smoothed_soft_labels,
    soft_label_cross_entropy,
)
from kdcompress.methods.losses.standardization import maybe_standardized, standardized
from kdcompress.methods.losses.temperature import Curriculum, learnt_temperature, reversal
from kdcompress.methods.losses.variance_covariance import covariance_energy, span, squeeze, variance_shortfall
from kdcompress.methods.losses.views import mean_difference
from kdcompress.methods.losses.zipf import dense_votes, other_classes_kl, zipf_targets

__all__ = [
    "ContrastColumns",
    "Curriculum",
    "Pair",
    "activation_boundaries",
    "active_squared_sum",
    "attention_transfer",
    "bank_columns",
    "bank_products",
    "bank_scores",
    "batch_columns",
    "class_contrast",
    "cosine_alignment",
    "covariance_energy",
    "cross_entropy",
    "dense_votes",
    "density_ratio",
    "designed_labels",
    "discriminator_loss",
    "embedding",
    "energy_difference",
    "error_products",
    "euclidean",
    "exponential_ramp",
    "four_rotations",
    "gate_weights",
    "generalization_weights",
    "guarded_kl",
    "hierarchical_context",
    "imitation_loss",
    "inter_class",
    "intra_class",
    "joint_labels",
    "joint_to_class_logits",
    "kl",
    "learnt_temperature",
    "map_similarity_difference",
    "masked_kl",
    "match",
    "maybe_standardized",
    "mean_difference",
    "minimum_logits",
    "mix_logits",
    "mixed_logits",
    "mixture_weights",
    "most_certain_logits",
    "mse",
    "mutual_angles",
    "mutual_distances",
    "nckd",
    "negative_cosine",
    "next_of_class",
    "noise_contrastive",
    "other_classes_kl",
    "own_column_cross_entropy",
    "own_image_cross_entropy",
    "own_images",
    "pair",
    "pairs",
    "pairs_of_one_size",
    "peer_attention",
    "probabilities",
    "queue_logits",
    "rank_of",
    "relation_kl",
    "renormalised_soft_labels",
    "reversal",
    "reverse_gradient",
    "rotation_rows",
    "row_products",
    "side_cross_entropy",
    "similarities",
    "similarity_imitation",
    "similarity_preserving",
    "smoothed_soft_labels",
    "soft_cross_entropy",
    "soft_label_cross_entropy",
    "span",
    "squared_alignment",
    "squeeze",
    "stage_maps",
    "standardized",
    "supervised_contrast",
    "tckd",
    "top_ratio_correct",
    "turned_cosines",
    "turned_views",
    "unit_rows",
    "variance_shortfall",
    "zipf_targets",
]

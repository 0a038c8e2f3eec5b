"""The losses as pure functions, in float32 or wider, reductions and factors of T² written out.

Shape letters: B rows, K classes, D features. `teacher` is whatever is imitated: a frozen network, a peer, a
deeper head.
"""

from __future__ import annotations

from kdcompress.methods.losses.contrast import bank_scores, embedding, noise_contrastive
from kdcompress.methods.losses.correlation import inter_class, intra_class
from kdcompress.methods.losses.decoupled import nckd, tckd
from kdcompress.methods.losses.features import euclidean
from kdcompress.methods.losses.geometry import mutual_angles, mutual_distances
from kdcompress.methods.losses.logits import cross_entropy, guarded_kl, kl, soft_cross_entropy
from kdcompress.methods.losses.maps import (
    activation_boundaries,
    attention_transfer,
    mse,
    similarity_preserving,
)
from kdcompress.methods.losses.pairing import Pair, pair, pairs, pairs_of_one_size, stage_maps
from kdcompress.methods.losses.relations import (
    cosine_alignment,
    relation_kl,
    squared_alignment,
    supervised_contrast,
)
from kdcompress.methods.losses.review import hierarchical_context
from kdcompress.methods.losses.rotations import four_rotations
from kdcompress.methods.losses.standardization import standardized
from kdcompress.methods.losses.temperature import Curriculum, learnt_temperature, reversal

__all__ = [
    "Curriculum",
    "Pair",
    "activation_boundaries",
    "attention_transfer",
    "bank_scores",
    "cosine_alignment",
    "cross_entropy",
    "embedding",
    "euclidean",
    "four_rotations",
    "guarded_kl",
    "hierarchical_context",
    "inter_class",
    "intra_class",
    "kl",
    "learnt_temperature",
    "mse",
    "mutual_angles",
    "mutual_distances",
    "nckd",
    "noise_contrastive",
    "pair",
    "pairs",
    "pairs_of_one_size",
    "relation_kl",
    "reversal",
    "similarity_preserving",
    "soft_cross_entropy",
    "squared_alignment",
    "stage_maps",
    "standardized",
    "supervised_contrast",
    "tckd",
]

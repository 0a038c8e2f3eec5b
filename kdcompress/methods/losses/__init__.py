"""The losses as pure functions, in float32 or wider, reductions and factors of T² written out.

Shape letters: B rows, K classes, D features. `teacher` is whatever is imitated: a frozen network, a peer, a
deeper head.
"""

from __future__ import annotations

from kdcompress.methods.losses.features import euclidean
from kdcompress.methods.losses.logits import cross_entropy, guarded_kl, kl, soft_cross_entropy

__all__ = ["cross_entropy", "euclidean", "guarded_kl", "kl", "soft_cross_entropy"]

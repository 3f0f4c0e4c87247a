"""Division of a global batch into micro-batches, for training and for its plan.

Works on plain numbers, because a plan loads no numpy. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ssd_ray.errors import UserError


def share_out(
    lengths: Sequence[int], responses: Sequence[int], num_shares: int, budget: int, *, packed: bool
) -> list[list[list[int]]]:
    """Divide a batch into micro-batches, equally many for each share.

    - Longest first, a micro-batch takes sequences while they fit in `budget` tokens. A longer
      sequence goes alone.
    - Each micro-step deals the next `num_shares` micro-batches, the costliest to the share with the
      smallest load so far.
    - Sequences without a response are left out. The shortest of them are kept where needed to make
      the number of sequences a multiple of `num_shares`.

    Args:
        lengths: tokens of each sequence of the batch.
        responses: tokens of each sequence covered by the loss.
        num_shares: workers, or groups of workers sharing a sequence.
        budget: tokens of a micro-batch, padding included.
        packed: True if sequences are concatenated, False if padded to the longest.

    Returns:
        Positions in the batch, by share and micro-step.

    Raises:
        UserError: the sequences cannot be dealt evenly.
    """
    if len(lengths) % num_shares:
        raise UserError(
            f"train.global_batch_size {len(lengths)} is not a multiple of the {num_shares} workers "
            "that share it"
        )

    def cost(group: list[int]) -> int:
        # A group is sorted, longest first.
        if packed:
            return sum(lengths[position] for position in group)
        return lengths[group[0]] * len(group)

    positions = _computed(lengths, responses, num_shares)
    groups = _group(lengths, positions, budget, packed=packed)
    _halve(groups, num_shares, cost)
    groups.sort(key=cost, reverse=True)
    shares: list[list[list[int]]] = [[] for _ in range(num_shares)]
    loads = [0] * num_shares
    for start in range(0, len(groups), num_shares):
        # The order is taken before the loads of this micro-step are added.
        order = sorted(range(num_shares), key=loads.__getitem__)
        for share, group in zip(order, groups[start : start + num_shares], strict=True):
            shares[share].append(group)
            loads[share] += cost(group)
    return shares


def _computed(lengths: Sequence[int], responses: Sequence[int], num_shares: int) -> list[int]:
    """Return the positions to compute: all with a response, and the shortest others as filling.

    Their number is a multiple of `num_shares`, and at least one for each share.
    """
    with_response = [place for place, response in enumerate(responses) if response > 0]
    others = [place for place, response in enumerate(responses) if response <= 0]
    lacking = -len(with_response) % num_shares if with_response else num_shares
    return with_response + sorted(others, key=lengths.__getitem__)[:lacking]


def _group(
    lengths: Sequence[int], positions: Sequence[int], budget: int, *, packed: bool
) -> list[list[int]]:
    """Group positions, longest first, into micro-batches of at most `budget` tokens each."""
    groups: list[list[int]] = []
    filled = 0
    for position in sorted(positions, key=lengths.__getitem__, reverse=True):
        if packed:
            needed_tokens = filled + lengths[position]
        elif groups:
            # The first sequence of a group is its longest; the others are padded to its length.
            needed_tokens = lengths[groups[-1][0]] * (len(groups[-1]) + 1)
        else:
            needed_tokens = 0
        if not groups or needed_tokens > budget:
            groups.append([])
            filled = 0
        groups[-1].append(position)
        filled += lengths[position]
    return groups


def _halve(groups: list[list[int]], num_shares: int, cost: Callable[[list[int]], int]) -> None:
    """Halve the costliest group until the number of groups is a multiple of `num_shares`."""
    while len(groups) % num_shares:
        # Some group has two sequences or more: the number of sequences is a multiple of
        # `num_shares`, and that of groups is not.
        largest = max((group for group in groups if len(group) > 1), key=cost)
        place = next(place for place, group in enumerate(groups) if group is largest)
        groups[place : place + 1] = [largest[: len(largest) // 2], largest[len(largest) // 2 :]]

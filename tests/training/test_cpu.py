"""CPU kernels of this package match torch and can be used in the same ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ssd_ray.models.cpu_kernels import add_in_place, use_fast_products


def _linears() -> tuple[nn.Linear, nn.Linear]:
    """Return a layer of torch, and a copy with the kernels of this package."""
    torch.manual_seed(0)
    plain, ours = nn.Linear(4, 6), nn.Linear(4, 6)
    ours.load_state_dict(plain.state_dict())
    use_fast_products(ours)
    return plain, ours


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (0, 4), (4,)])
def test_a_linear_layer_and_its_three_gradients_match_torch(shape: tuple[int, ...]) -> None:
    results = []
    for layer in _linears():
        hidden = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = layer(hidden)
        (out.sin() * 2).sum().backward()
        results.append((out, hidden.grad, layer.weight.grad, layer.bias.grad))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "change", [lambda out: out.clamp_(-0.1, 0.1), lambda out: out.mul_(2), lambda out: out.add_(1)]
)
def test_the_output_of_a_layer_can_be_changed_in_place(change: Callable[[Tensor], Tensor]) -> None:
    layers, tables = _linears(), (nn.Embedding(5, 4), nn.Embedding(5, 4))
    tables[1].load_state_dict(tables[0].state_dict())
    add_in_place(tables[1])
    for layer, table in zip(layers, tables, strict=True):
        change(layer(change(table(torch.tensor([[1, 2], [3, 1]]))))).sum().backward()
    torch.testing.assert_close(layers[1].weight.grad, layers[0].weight.grad)
    torch.testing.assert_close(tables[1].weight.grad, tables[0].weight.grad)


@pytest.mark.parametrize("special", [{"scale_grad_by_freq": True}, {"max_norm": 0.1}])
def test_an_embedding_with_special_options_is_left_to_torch(special: dict[str, float]) -> None:
    ids, grads = torch.tensor([1, 1, 3]), []
    for ours in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(5, 4, **special)
        if ours:
            add_in_place(table)
        table(ids).sin().sum().backward()
        grads.append((table.weight.grad, table.weight.detach()))
    for theirs, mine in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)

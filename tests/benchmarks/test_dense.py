import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from benchmarks.dense import dense_net
from netaug_fx.errors import InputError
from netaug_fx.models import create


def _example(model: nn.Module) -> Tensor:
    return torch.randn(4, *model.example_input_shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "which"),
    [("digits_net", "base"), ("digits_net", "drawn"), ("digits_net", "widest"), ("mobilenet_v3_035", "drawn")],
)
def test_the_dense_net_gives_the_augmented_outputs_and_gradients(name: str, which: str) -> None:
    torch.manual_seed(0)
    supernet = netaug_fx.augment(create(name))
    widths = {"base": {}, "drawn": supernet.sample(), "widest": supernet.widest}[which]
    dense = dense_net(supernet, widths)
    x = _example(supernet)
    with supernet.augmented(widths):
        expected = supernet.train()(x)
    found = dense.train()(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    expected.square().sum().backward()
    found.square().sum().backward()
    classifier = dense.classifier.weight.grad
    width = supernet.classifier.weight.shape[1]
    torch.testing.assert_close(classifier[:, :width], supernet.classifier.weight.grad, rtol=1e-3, atol=1e-4)


def test_the_dense_net_is_plain_and_of_the_asked_widths() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    supernet = netaug_fx.augment(model, ratio=3)
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    dense = dense_net(supernet, supernet.widest)
    assert [type(module) for module in dense.modules()] == [type(module) for module in model.modules()]
    assert dense.state_dict().keys() == model.state_dict().keys()
    assert dense[0].weight.shape == (24, 3, 3, 3)
    assert (dense[1].num_groups, dense[1].weight.shape) == (6, (24,))
    assert all(torch.equal(value, before[key]) for key, value in supernet.state_dict().items())
    shared = {id(p) for p in supernet.parameters()} & {id(p) for p in dense.parameters()}
    assert not shared


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight
            self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.b(self.a(self.first(x)).relu()))

    x = torch.randn(3, 5)
    supernet = netaug_fx.augment(Tied(), example_inputs=x)
    dense = dense_net(supernet, supernet.widest)
    assert dense.a.weight is dense.b.weight
    with supernet.augmented(supernet.widest):
        torch.testing.assert_close(dense(x), supernet(x))


def test_a_forward_that_holds_widths_holds_those_of_the_dense_net() -> None:
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).view(-1, 6))

    x = torch.randn(3, 5)
    supernet = netaug_fx.augment(nn.Sequential(Literal()), example_inputs=x)
    dense = dense_net(supernet, supernet.widest)
    with supernet.augmented(supernet.widest):
        torch.testing.assert_close(dense(x), supernet(x))
    assert dense[0].a.weight.shape == (18, 5)


def test_widths_out_of_range_are_refused() -> None:
    supernet = netaug_fx.augment(create("digits_net"))
    with pytest.raises(InputError, match="must be an integer from"):
        dense_net(supernet, dict.fromkeys(supernet.widest, 10**6))

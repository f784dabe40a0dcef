import torch
from torch import nn

from slimrank.refine.replay import Replay


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, scale=1.0):
        self.calls += 1
        return x * scale + self.calls, None


def test_a_module_gives_each_batchs_outputs_again_in_their_order():
    module, replay, x = Counted(), Replay(2**20), torch.zeros(4)
    for _ in range(3):
        with replay([module], 0):
            assert (module(x)[0][0].item(), module(x)[0][0].item()) == (1, 2)
    with replay([module], 1):
        assert module(x)[0][0].item() == 3
    assert module.calls == 3 and "forward" not in vars(module)
    assert module(x, scale=2.0)[0][0].item() == 4


def test_what_follows_may_write_to_an_output():
    module, replay = Counted(), Replay(2**20)
    for _ in range(3):
        with replay([module], 0):
            module(torch.zeros(4))[0].add_(7)
    with replay([module], 0):
        assert module(torch.zeros(4))[0].tolist() == [1] * 4


def test_outputs_beyond_the_room_or_not_to_be_kept_are_made_again_and_room_comes_back():
    module, replay, x = Counted(), Replay(16), torch.zeros(4)
    for number in range(3):
        with replay([module], number):
            module(x)
    for number in range(2):
        with replay([module], number):
            module(x)
    assert module.calls == 4
    replay.clear()
    with replay([module], 5, keep=False):
        module(x)
    with replay([module], 5):
        module(x)
    with replay([module], 5):
        module(x)
    assert module.calls == 6


def test_a_forward_that_was_set_on_the_module_itself_comes_back():
    module, replay = Counted(), Replay(2**20)
    module.forward = own = lambda x: x
    with replay([module], 0):
        module(torch.zeros(1))
    assert module.forward is own


def test_a_module_with_cached_outputs_takes_the_place_of_those_inside_it():
    inner, x = Counted(), torch.zeros(4)
    outer = nn.Sequential(inner)
    replay = Replay(16)
    for _ in range(2):
        with replay([inner], 0):
            outer(x)
    for _ in range(2):
        with replay([outer, inner], 0):
            assert outer(x)[0].tolist() == [1] * 4
    assert inner.calls == 1
    with replay([inner], 0):
        outer(x)
    assert inner.calls == 2


def test_what_does_not_fit_together_is_not_kept_in_part():
    modules, x = [Counted(), Counted()], torch.zeros(4)
    replay = Replay(24)
    for _ in range(2):
        with replay(modules, 0):
            [module(x) for module in modules]
    assert [module.calls for module in modules] == [2, 2]

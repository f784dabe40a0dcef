import torch
from torch import nn

from slimrank.calibrate.pairs import PairMoments, watch_sums


class Block(nn.Module):
    """h + o(a(h)), then + down(.), as decoders do it."""

    def __init__(self):
        super().__init__()
        self.a, self.o, self.down = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 4)
        self.passed = 0

    def forward(self, h):
        h = h + self.o(self.a(h).tanh())
        h = self.down(h) + h
        self.passed += 1
        return h


def test_inputs_outputs_and_what_they_are_added_to():
    block, h = Block(), torch.randn(2, 3, 4)
    with torch.no_grad(), watch_sums(dict(block.named_children())) as seen:
        block(h)
    middle = h + seen["o"].y
    assert seen["a"].x is h and seen["a"].addend is None
    assert seen["o"].addend is h
    torch.testing.assert_close(seen["down"].addend, middle)
    torch.testing.assert_close(seen["o"].y, block.o(block.a(h).tanh()))


def test_a_pass_is_broken_off_once_all_is_seen():
    block, h = Block(), torch.randn(2, 3, 4)
    with torch.no_grad(), watch_sums({"o": block.o}, awaited=["o"]) as seen:
        block(h)
    assert seen["o"].addend is h and block.passed == 0
    with torch.no_grad(), watch_sums({"o": block.o}) as seen:
        block(h)
    assert block.passed == 1


def test_the_target_makes_up_for_the_residual_stream():
    torch.manual_seed(0)
    dense, other, h = Block(), Block(), torch.randn(2, 3, 4)
    with torch.no_grad():
        with watch_sums({"down": dense.down}) as before:
            dense(h)
        with watch_sums({"down": other.down}) as after:
            other(h)
        plain, anchored = PairMoments(), PairMoments()
        plain.add(before, after, {"down": dense.down.bias}, residual=False)
        anchored.add(before, after, {"down": dense.down.bias}, residual=True)
        x = after["down"].x.flatten(0, 1).double()
        wanted = dense(h).flatten(0, 1) - after["down"].addend.flatten(0, 1) - dense.down.bias
        torch.testing.assert_close(anchored.cross["down"], wanted.double().T @ x, atol=1e-5, rtol=1e-5)
        y = before["down"].x.flatten(0, 1) @ dense.down.weight.T
        torch.testing.assert_close(plain.take("down", dense.down.weight), y.double().T @ x, atol=1e-5, rtol=1e-5)
        assert not plain.cross and anchored.inputs is None
        torch.testing.assert_close(plain.gram(), x.T @ x, atol=1e-5, rtol=1e-5)
        assert plain.tokens == 6

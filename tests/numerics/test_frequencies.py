import pytest
import torch

from slimrank.numerics.frequencies import LISTED, Frequencies


def test_the_distance_is_the_share_of_tokens_that_would_have_to_be_others():
    known = Frequencies.of(torch.tensor([[1, 1, 1, 2], [1, 2, 2, 2]]))
    assert (known.ids, known.counts, known.others) == ([1, 2], [4, 4], 0)
    assert known.distance(torch.tensor([[1, 2, 2, 1]])) == 0
    assert known.distance(torch.tensor([[1, 1, 1, 2]])) == 0.25
    assert known.distance(torch.tensor([[1, 1, 7, 2]])) == 0.25
    assert known.distance(torch.tensor([[0, 3, 7, 9]])) == 1
    assert known.usual == [(4, 0.5)]  # three quarters of 1 against one quarter


def test_beyond_the_most_frequent_tokens_all_others_are_one():
    often = torch.arange(LISTED).repeat(2)
    rare = torch.arange(LISTED, LISTED + 2048)
    known = Frequencies.of(torch.cat([rare, often]).view(10, 1024))
    assert known.ids == list(range(LISTED)) and set(known.counts) == {2} and known.others == 2048
    assert known.distance(rare.flip(0)[None]) == pytest.approx(0.8)  # a fifth of the calibration tokens is as rare


def test_as_many_tokens_of_the_same_text_are_at_the_usual_distance():
    shares = 1 / torch.arange(1, 400).double()
    generator = torch.Generator().manual_seed(0)
    windows = shares.multinomial(96 * 64, replacement=True, generator=generator).view(96, 64)
    known = Frequencies.of(windows[:64])
    assert [tokens for tokens, _ in known.usual] == [64 * 2**n for n in range(6)]
    assert [far for _, far in known.usual] == sorted((far for _, far in known.usual), reverse=True)
    for count in (1, 4, 32):
        others = [known.distance(group) for group in windows[64:].split(count)]
        assert sum(others) / len(others) == pytest.approx(known.usual_at(64 * count), abs=0.03)
    assert known.distance(windows[:64]) == 0
    assert known.usual_at(10) == known.usual[0][1] and known.usual_at(10**9) == known.usual[-1][1]
    assert known.usual_at(64 * 5) == dict(known.usual)[64 * 4]


def test_a_single_window_has_no_usual_distance():
    assert Frequencies.of(torch.tensor([[1, 2]])).usual_at(2) is None

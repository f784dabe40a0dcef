import torch

from slimrank.calibrate.gradients import drawn


def test_ids_are_drawn_as_often_as_they_are_probable_and_impossible_ones_never():
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    places = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    found = drawn(probabilities.log().expand(200_000, 6), places)
    shares = torch.bincount(found, minlength=6) / 200_000
    torch.testing.assert_close(shares, probabilities, atol=4e-3, rtol=0)
    assert not shares[[0, 2, 5]].any()


def test_the_ends_of_the_scale_are_the_first_and_the_last_possible_id():
    logits = torch.tensor([0.0, 0.3, -torch.inf, 0.1, -torch.inf]).expand(2, 5)
    assert drawn(logits, torch.tensor([0.0, 1 - 1e-7])).tolist() == [0, 3]

from tiny_spectra import spectra

from slimrank.spectrum.spectra import Decompositions


def test_decompositions_are_held_as_far_as_there_is_room(tiny_llama):
    made = spectra(tiny_llama(), route="eigen")
    assert list(made.held) == list(made.curves)
    units, one = list(made.curves), next(iter(made.held.values()))
    held = Decompositions(room=2 * one.nbytes)
    for unit in units[:3]:
        held.hold(unit, one)
    assert list(held) == units[:2]
    assert one.nbytes == 8 * (one.values.numel() + one.left.numel() + one.right.numel())


def test_a_cut_is_computed_anew_where_nothing_is_held(tiny_llama):
    made = spectra(tiny_llama())
    unit = next(iter(made.curves))
    assert not made.held
    left, right = made.cut(unit, 5)
    assert made.decomposition(unit).cut(5)[0].allclose(left) and unit in made.held
    assert made.cut(unit, 5)[1].allclose(right)

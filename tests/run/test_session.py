from sessions import session

from slimrank.metric.whitened import Whitened
from slimrank.run.session import Decompositions


def test_decompositions_are_held_as_far_as_there_is_room(tiny_llama):
    made = session(tiny_llama(), metric=Whitened(route="eigen"))
    assert list(made.decompositions) == list(made.dense)
    one, calls = next(iter(made.decompositions.values())), []

    def make(name):
        calls.append(name)
        return one

    held = Decompositions(make, room=2 * one.nbytes)
    for name in "abcabc":
        assert held[name] is one
    assert calls == ["a", "b", "c", "c"] and held.nbytes == 2 * one.nbytes
    assert one.nbytes == 8 * (one.values.numel() + one.left.numel() + one.right.numel())

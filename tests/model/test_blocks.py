import pytest
from architectures import ARCHITECTURES, llama
from torch import nn

from slimrank.errors import SlimrankError
from slimrank.model.blocks import embedding_name, find_blocks, steps_between


def test_a_model_without_blocks_is_refused():
    with pytest.raises(SlimrankError, match="no list of blocks"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(SlimrankError, match="no list of blocks"):
        find_blocks(nn.ModuleDict({"list": nn.ModuleList([nn.LayerNorm(2)])}))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_list_beside_the_embedding_wins_over_a_larger_tower(name):
    model = ARCHITECTURES[name]()
    expected = find_blocks(model)
    layers = nn.ModuleList([nn.Linear(300, 300) for _ in range(3)])
    model.base_model.tower = nn.ModuleDict({"vision": nn.ModuleDict({"layers": layers})})
    found = find_blocks(model)
    assert found == expected and found[1] is expected[1]


def test_of_two_as_near_the_larger_wins_and_without_an_embedding_the_largest():
    model = llama()
    model.model.tower = nn.ModuleList([nn.Linear(300, 300)])
    assert find_blocks(model)[0] == "model.tower"
    plain = nn.ModuleDict({"near": nn.ModuleList([nn.Linear(2, 2)])})
    plain["far"] = nn.ModuleDict({"list": nn.ModuleList([nn.Linear(3, 3)])})
    assert embedding_name(plain) is None and find_blocks(plain)[0] == "far.list"


def test_steps_are_edges_of_the_tree():
    assert embedding_name(llama()) == "model.embed_tokens"
    assert steps_between("model.layers", "model.embed_tokens") == 2
    assert steps_between("model.tower.layers", "model.text.embed") == 4
    assert steps_between("model", "model.text.embed") == 2
    assert steps_between("a.b", "c.b") == 4

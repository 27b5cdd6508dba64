"""Windows know where they lie."""

import torch

from holdfast.graphs.window import Window


def test_rows_of_a_located_window_keep_their_places():
    torch.manual_seed(0)
    origin = torch.tensor([[-1, 0], [3, 2], [0, 5]])
    window = Window(torch.rand(3, 1, 2, 3, 3), origin, torch.tensor([0, 0, 1]))
    index = torch.tensor([2, 0])
    located, plain = window.located((6, 7)).rows(index), window.rows(index)
    for found, expected in zip(located.positions((6, 7)), plain.positions((6, 7)), strict=True):
        assert torch.equal(found, expected)
    maps = torch.rand(2, 2, 6, 7)
    assert torch.equal(located.gather(maps), plain.gather(maps))
    assert torch.equal(located.spread((2, 6, 7)), plain.spread((2, 6, 7)))

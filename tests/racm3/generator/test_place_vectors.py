import pytest
import torch

from racm3.generator.place_vectors import above, place_vectors
from racm3.sequence.places import PlaceTable


def make(rows, columns, channels, text=20):
    places = PlaceTable(max_text_tokens=text, image_tokens=rows * columns)
    return places, place_vectors(places, (rows, columns), channels)


def cells(places, vectors):
    return vectors[places.image_base : places.image_base + places.image_tokens]


@pytest.mark.parametrize(("rows", "columns", "channels"), [(8, 8, 16), (4, 6, 16), (8, 8, 8)])
def test_a_cell_is_closest_to_itself_and_words_are_no_cells(rows, columns, channels):
    places, vectors = make(rows, columns, channels)
    grid, norm = cells(places, vectors), channels**0.5
    torch.testing.assert_close(grid.norm(dim=1), torch.full((len(grid),), norm))
    assert not vectors[: places.text_base].any()
    alike = grid @ grid.T / channels
    assert (alike - 2 * torch.eye(len(grid))).max() < 0.9
    words = vectors[places.text_base : places.text_last + 1]
    assert (words @ grid.T / channels).max() < 0.7


def test_with_enough_channels_other_rows_and_columns_are_orthogonal():
    places, vectors = make(8, 8, 16)
    grid = cells(places, vectors)
    alike = (grid @ grid.T / 16).view(8, 8, 8, 8)
    for row, column in ((0, 0), (3, 5), (7, 7)):
        expected = torch.zeros(8, 8)
        expected[row] += 0.5
        expected[:, column] += 0.5
        torch.testing.assert_close(alike[row, column], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rows", "columns", "channels"), [(8, 8, 16), (5, 3, 8), (32, 32, 32)])
def test_above_maps_a_cell_to_the_one_above(rows, columns, channels):
    places, vectors = make(rows, columns, channels)
    grid = cells(places, vectors)
    lifted = grid[columns:] @ above((rows, columns), channels).T
    torch.testing.assert_close(lifted, grid[:-columns], atol=1e-4, rtol=0)

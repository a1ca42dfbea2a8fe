import pytest
import torch

from anomseg.data.class_rule import DERIVED, NO_CLASS, ClassAsNormal, ClassTable, IndexThreshold
from anomseg.errors import SceneFormatError

TABLE = ClassTable(("void", "urban", "water"), ids=(0, 3, 7), colours=((0, 0, 0), (255, 0, 9), (0, 0, 255)), void=("void",))
IDS = torch.tensor([[0, 3, 7], [3, NO_CLASS, 7]])


def test_class_as_normal__maps_normal_other_and_ignored_classes():
    assert ClassAsNormal(("water",)).mask(IDS, TABLE).tolist() == [[255, 1, 0], [1, 255, 0]]
    assert ClassAsNormal((3,)).mask(IDS, TABLE).tolist() == [[255, 0, 1], [0, 255, 1]]
    assert ClassAsNormal((3,), ("water",)).mask(IDS, TABLE).tolist() == [[255, 0, 255], [0, 255, 255]]


def test_class_as_normal__swaps_normal_and_anomalous_with_the_classes():
    ids = torch.randint(0, 2, (9, 9), generator=torch.Generator().manual_seed(0))
    table = ClassTable(("a", "b"))
    assert torch.equal(ClassAsNormal(("a",)).mask(ids, table), 1 - ClassAsNormal(("b",)).mask(ids, table))


def test_class_as_normal__lets_a_normal_layer_win_and_an_ignored_one_over_it():
    table = ClassTable(("background", "weed", "water"))
    layers = {"weed": torch.tensor([True, True, False, False]), "water": torch.tensor([False, True, True, False])}
    assert ClassAsNormal(("weed",)).mask_of_layers(layers, table).tolist() == [0, 0, 1, 1]
    assert ClassAsNormal(("background",)).mask_of_layers(layers, table).tolist() == [1, 1, 1, 0]
    assert ClassAsNormal(("weed",), ("water",)).mask_of_layers(layers, table).tolist() == [0, 255, 255, 1]


def test_class_as_normal__takes_a_class_without_a_layer_as_absent():
    table = ClassTable(("background", "weed", "water"))
    layers = {"weed": torch.tensor([True, False])}
    assert ClassAsNormal(("water",)).mask_of_layers(layers, table).tolist() == [1, 1]
    assert ClassAsNormal(("background",)).mask_of_layers(layers, table).tolist() == [1, 0]


@pytest.mark.parametrize("classes", [ClassAsNormal(("road",)), ClassAsNormal((1,)), ClassAsNormal((3,), ("sand",))])
def test_class_as_normal__names_the_classes_there_are(classes):
    with pytest.raises(ValueError, match=r"Expected classes among .*'urban': 3"):
        classes.ids(TABLE)


def test_class_as_normal__refuses_contradictions():
    with pytest.raises(ValueError, match="that count"):
        ClassAsNormal(("void",)).ids(TABLE)
    with pytest.raises(ValueError, match="not ignored"):
        ClassAsNormal(("a",), ("a",))
    with pytest.raises(ValueError, match="at least one normal class"):
        ClassAsNormal(())


def test_class_table__lists_the_ids_that_it_does_not_know():
    TABLE.check(IDS, "a.png")
    for strange in ([1, 9], [1, 2**40]):
        with pytest.raises(SceneFormatError, match=rf"'a.png', but got also \[{strange[0]}, {strange[1]}\]"):
            TABLE.check(torch.tensor([[*strange[::-1], 3]]), "a.png")


def test_class_table__reads_colours_and_lists_those_it_does_not_know():
    picture = torch.tensor([[[0, 255, 0]], [[0, 0, 0]], [[255, 9, 0]]])
    assert TABLE.ids_of_colours(picture, "a.png").tolist() == [[7, 3, 0]]
    picture[1, 0, 2] = 5
    with pytest.raises(SceneFormatError, match=r"got also \[\(0, 5, 0\)\] \(1 pixels\)"):
        TABLE.ids_of_colours(picture, "a.png")
    with pytest.raises(SceneFormatError, match="with colours"):
        ClassTable(("a",)).ids_of_colours(picture, "a.png")


def test_class_table__finds_the_classes_of_a_map():
    assert TABLE.found_in(torch.tensor([[7, 7]])) == ("water",)


@pytest.mark.parametrize(
    "arguments",
    [
        {"names": ("a", "a")},
        {"names": ()},
        {"names": ("a",), "ids": (-1,)},
        {"names": ("a", "b"), "ids": (1,)},
        {"names": ("a",), "void": ("b",)},
    ],
)
def test_class_table__refuses_what_is_no_table(arguments):
    with pytest.raises(ValueError, match="Expected"):
        ClassTable(**arguments)


def test_index_threshold__is_the_sign_of_the_normalised_difference():
    image = torch.tensor([[[3.0, 1.0, 0.0, torch.nan, 2.0]], [[9.0, 9.0, 9.0, 9.0, torch.nan]], [[1.0, 3.0, 0.0, 1.0, 1.0]]])
    assert IndexThreshold((0, 2)).ids(image).tolist() == [[1, 0, NO_CLASS, NO_CLASS, NO_CLASS]]
    assert IndexThreshold((0, 2), 0.5).ids(image)[0, 0] == 0
    assert ClassAsNormal(("below",)).mask(IndexThreshold((0, 2)).ids(image), DERIVED).tolist() == [[1, 0, 255, 255, 255]]
    with pytest.raises(ValueError, match="bands of 0 to 2"):
        IndexThreshold((0, 3)).ids(image)

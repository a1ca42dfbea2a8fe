import pytest
import torch
from jsonargparse import ArgumentParser

from anomseg.config import build, describe
from anomseg.data.defects import Blend, Corruption, CutPaste, Hole, Scar, default_defects
from anomseg.sample import check_sample


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(size=(32, 32), bands=3):
    return {"image": torch.rand(bands, *size, generator=generator()), "mask": torch.zeros(size, dtype=torch.long)}


def test_corruption__never_reaches_the_image():
    corruption, given = Corruption(), sample()
    kept = given["image"].clone()
    for seed in range(20):
        found = corruption(given, generator(seed))
        assert found["image"] is given["image"]
        assert torch.equal(found["image"], kept)
        found["corrupted"].zero_()  # memory of its own
        assert torch.equal(found["image"], kept)


def test_corruption__marks_exactly_where_corrupted_differs():
    corruption, given = Corruption(max_defects=4), sample()
    for seed in range(20):
        found = corruption(given, generator(seed), [torch.rand(3, 20, 20)])
        assert torch.equal(found["defect"] == 1, (found["corrupted"] != found["image"]).any(0))
        assert bool((found["defect"] == 1).any())


def test_corruption__ignores_void_and_pixels_without_data():
    given = sample()
    given["mask"][:8], given["image"][:, -8:] = 255, torch.nan
    found = Corruption()(given, generator())
    assert bool((found["defect"][:8] == 255).all())
    assert bool((found["defect"][-8:] == 255).all())
    assert bool((found["defect"][8:-8] != 255).all())
    check_sample({key: value[None] for key, value in found.items()})


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_corruption__corrupts_its_share_of_the_samples(probability):
    corruption, given = Corruption(probability=probability, max_defects=1, defects=(Hole(),)), sample()
    hit = [bool((corruption(given, generator(seed))["defect"] == 1).any()) for seed in range(100)]
    assert abs(sum(hit) / 100 - probability) < 0.12


def test_corruption__leaves_a_sample_without_data_as_it_is():
    given = {"image": torch.full((1, 8, 8), torch.nan)}
    found = Corruption()(given, generator())
    assert bool(found["corrupted"].isnan().all())
    assert bool((found["defect"] == 255).all())


def test_corruption__draws_every_kind():
    def seen(kinds):
        return {bytes(Corruption(kinds, max_defects=1)(sample(), generator(seed))["corrupted"].numpy()) for seed in range(40)}

    first, second = seen((Hole(),)), seen((Scar(),))
    both = seen((Hole(), Scar()))
    assert both <= first | second
    assert min(len(both & first), len(both & second)) > 10


def test_triple__gives_corrupted_clean_and_mask():
    image = sample()["image"]
    corrupted, clean, mask = Corruption().triple(image, generator())
    assert clean is image
    assert corrupted.data_ptr() != image.data_ptr()
    assert mask.dtype == torch.bool
    assert torch.equal(mask, (corrupted != clean).any(0))


def test_corruption__needs_other_images_for_some_kinds_alone():
    assert Corruption((Blend(),)).needs_others
    assert not Corruption((CutPaste(), Scar(), Hole())).needs_others


def test_default_defects__are_one_of_each_kind():
    assert len({type(kind) for kind in default_defects()}) == 9


def test_corruption__is_described_and_built_again():
    corruption = Corruption((CutPaste(strength=0.5), Blend(edge="feathered")), probability=0.5)
    assert build(describe(corruption), Corruption) == corruption


def test_corruption__is_configured_by_class_paths():
    parser = ArgumentParser()
    parser.add_argument("--corruption", type=Corruption | None)
    defects = [{"class_path": "anomseg.data.defects.Scar", "init_args": {"strength": 0.5, "size": [0.01, 0.02]}}]
    parsed = parser.instantiate(parser.parse_object({"corruption": {"defects": defects, "max_defects": 3}}))
    assert parsed["corruption"] == Corruption((Scar(0.5, (0.01, 0.02)),), max_defects=3)


@pytest.mark.parametrize("changes", [{"defects": ()}, {"probability": 0.0}, {"probability": 1.1}, {"max_defects": 0}])
def test_corruption__refuses_arguments_out_of_range(changes):
    with pytest.raises(ValueError, match="at least one kind of defect"):
        Corruption(**changes)


@pytest.mark.parametrize("size", [(1, 40), (5, 7), (2, 2), (130, 9)])
@pytest.mark.parametrize("kind", default_defects(), ids=lambda kind: type(kind).__name__)
def test_defects__fit_into_images_of_any_size(size, kind):
    image = torch.rand(2, *size, generator=generator())
    for seed in range(4):
        changed, mask = kind.apply(image, generator(seed), [torch.rand(2, 3, 50)])
        assert bool(mask.any())
        assert torch.equal(changed[:, ~mask], image[:, ~mask])

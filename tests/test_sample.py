import pytest
import torch

from anomseg.sample import IGNORE, check_mask, check_sample, collate, fill_nodata, finite_pixels, flat_truth, with_void


def batch(**changes):
    base = {"image": torch.rand(2, 3, 4, 5), "mask": torch.zeros(2, 4, 5, dtype=torch.long), "name": ["a", "b"]}
    return {**base, **changes}


def test_check_sample__accepts_images_and_pairs():
    check_sample(batch())
    check_sample(batch(image=torch.rand(2, 2, 3, 4, 5), label=torch.zeros(2, 4, 5, dtype=torch.long)))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"image": torch.zeros(2, 3, 4, 5, dtype=torch.uint8)}, TypeError, "floating-point"),
        ({"image": torch.rand(3, 4, 5)}, ValueError, r"\(B, C, H, W\)"),
        ({"mask": torch.zeros(2, 1, 4, 5).long()}, ValueError, "drop a channel axis"),
        ({"mask": torch.zeros(2, 4, 6).long()}, ValueError, "to fit the image"),
        ({"mask": torch.zeros(2, 4, 5)}, TypeError, r"\.long\(\)"),
        ({"label": torch.zeros(2, 4, 4).long()}, ValueError, r"batch\['label'\]"),
    ],
)
def test_check_sample__says_what_breaks_the_contract(changes, error, text):
    with pytest.raises(error, match=text):
        check_sample(batch(**changes))


def test_check_sample__lists_the_keys_it_got():
    with pytest.raises(ValueError, match=r"\['x'\]"):
        check_sample({"x": 1})


def test_check_mask__names_the_sample_and_the_values():
    mask = torch.zeros(2, 4, 5, dtype=torch.long)
    mask[1, 0, 0] = 7
    with pytest.raises(ValueError, match=r"\[0, 7\] in sample 1 \('b'\)"):
        check_mask(mask, ["a", "b"])
    check_mask(torch.tensor([[[0, 1, IGNORE]]]))


def test_finite_pixels__needs_every_band_and_date():
    image = torch.zeros(1, 2, 3, 2, 2)
    image[0, 1, 2, 0, 1] = torch.nan
    image[0, 0, 0, 1, 1] = torch.inf
    assert finite_pixels(image).tolist() == [[[True, False], [True, False]]]


def test_finite_pixels__is_not_fooled_by_a_sum_that_overflows():
    image = torch.full((1, 3, 2, 2), 3e38)
    image[0, :, 0, 0] = torch.tensor([torch.inf, -torch.inf, 0.0])
    assert finite_pixels(image).tolist() == [[[False, True], [True, True]]]


def test_fill_nodata__puts_the_band_mean_where_there_is_no_data():
    image = torch.tensor([[[[1.0, torch.nan], [3.0, 5.0]], [[2.0, 2.0], [4.0, 6.0]]]])
    filled, valid = fill_nodata(image)
    assert valid.sum() == 3
    assert filled[0, :, 0, 1].tolist() == [3.0, 4.0]
    untouched = valid[0]
    assert torch.equal(filled[0][:, untouched], image[0][:, untouched])
    assert torch.isfinite(fill_nodata(torch.full((1, 2, 2, 2), torch.nan))[0]).all()


def test_collate__stacks_tensors_and_lists_metadata():
    samples = [{"image": torch.rand(1, 2, 2), "name": n, "crs": None} for n in "ab"]
    joined = collate(samples)
    assert joined["image"].shape == (2, 1, 2, 2)
    assert joined["name"] == ["a", "b"]
    assert joined["crs"] == [None, None]


def test_collate__names_the_sizes_that_differ():
    with pytest.raises(ValueError, match=r"a: \(1, 2, 2\).*batch_size=1"):
        collate([{"image": torch.rand(1, 2, 2), "name": "a"}, {"image": torch.rand(1, 3, 2), "name": "b"}])


def test_flat_truth__drops_one_channel_and_leaves_all_else():
    image, mask = torch.rand(2, 3, 4, 5), torch.zeros(2, 1, 4, 5, dtype=torch.long)
    flat = flat_truth({"image": image, "mask": mask, "label": mask[:, 0], "name": ["a", "b"]})
    assert flat["mask"].shape == flat["label"].shape == (2, 4, 5)
    assert flat["image"] is image
    assert flat["name"] == ["a", "b"]
    assert flat_truth(image) is image
    two = {"image": image, "mask": mask.expand(2, 2, 4, 5)}
    assert flat_truth(two) is two


def test_check_sample__accepts_what_industrial_batches_carry_beside_the_image():
    image = torch.rand(2, 3, 4, 5)
    flags = {"image_label": torch.tensor([0, 255]), "category": ["bottle", "tile"]}
    check_sample(batch(image=image, corrupted=image + 1, defect=torch.ones(2, 4, 5, dtype=torch.long), **flags))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"image_label": torch.zeros(2, 1).long()}, "2 integers"),
        ({"image_label": torch.tensor([0, 3])}, "255 .unknown."),
        ({"corrupted": torch.rand(2, 3, 4, 4)}, "corrupted"),
        ({"defect": torch.full((2, 4, 5), 2)}, r"\[2\] in sample 0"),
        ({"defect": torch.zeros(2, 4, 4).long()}, "defect"),
    ],
)
def test_check_sample__says_which_key_of_industrial_batches_is_wrong(changes, text):
    with pytest.raises(ValueError, match=text):
        check_sample(batch(**changes))


def test_collate__stacks_image_labels_and_lists_categories():
    samples = [{"image": torch.rand(1, 2, 2), "image_label": torch.tensor(n), "category": name} for n, name in ((0, "a"), (1, "b"))]
    stacked = collate(samples)
    assert stacked["image_label"].tolist() == [0, 1]
    assert stacked["category"] == ["a", "b"]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.int64])
def test_with_void__holds_255_whatever_the_type_of_the_mask(dtype):
    mask = torch.tensor([[0, 1, 0, 1]]).to(dtype)
    marked = with_void(mask, torch.tensor([[False, False, True, True]]))
    assert marked.dtype == torch.int64
    assert marked.tolist() == [[0, 1, 255, 255]]
    assert mask.long().tolist() == [[0, 1, 0, 1]]


def test_check_sample__refuses_more_than_two_dates():
    with pytest.raises(ValueError, match=r"two dates .*\(2, 3, 3, 4, 5\).*Pick two"):
        check_sample(batch(image=torch.rand(2, 3, 3, 4, 5)))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"name": "ab"}, TypeError, r"batch\['name'\] to be a list of 2 entries, but got 'ab'"),
        ({"category": 7}, TypeError, r"batch\['category'\]"),
        ({"name": ["a"]}, ValueError, r"2 entries in batch\['name'\], one an image, but got 1"),
        ({"window": [(0, 0, 4, 5)] * 3}, ValueError, r"batch\['window'\]"),
    ],
)
def test_check_sample__wants_metadata_for_each_image(changes, error, text):
    with pytest.raises(error, match=text):
        check_sample(batch(**changes))
    check_sample(batch(name=("a", "b"), crs=[None, None], wavelength=None))


@pytest.mark.parametrize("first", [0, 1])
def test_collate__names_samples_whose_keys_differ(first):
    samples = [{"image": torch.rand(1, 2, 2), "name": "a"}, {"image": torch.rand(1, 2, 2), "name": "b", "mask": torch.zeros(2, 2).long()}]
    with pytest.raises(ValueError, match=r"\['mask'\] are in only one of '[ab]' and '[ab]'"):
        collate([samples[first], samples[1 - first]])

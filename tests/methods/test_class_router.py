import pytest
import torch

from anomseg.errors import NotFittedError
from anomseg.methods.class_router import ClassRouter, ClassRouting, ClassScale, ImageDescriptors, Route, describe_images, place_in_class

STAGES = ["centroid", "pixel", "histogram", "pixel_histogram"]
NAMES = ["bolt", "carpet", "nut"]


def pictures(count=12, seed=0, kinds=(0, 1, 2)):
    """Images of three classes that differ in shape and in colour, and their names."""
    generator = torch.Generator().manual_seed(seed)
    images, names = [], []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        image = 0.2 * torch.randn(3, 40, 48, generator=generator)
        image[kind % 3] += 1.0
        image[:, 12 * kind : 12 * kind + 12, 10:30] += 1.5
        images.append(image)
        names.append(NAMES[kind] if kind < 3 else "unseen")
    return torch.stack(images), names


def described(images):
    features = torch.nn.functional.avg_pool2d(images, 8)
    return describe_images(images, features, torch.ones(len(images), *features.shape[2:], dtype=torch.bool))


def fitted(stage, **options):
    router = ClassRouter(ClassRouting(stage, **options))
    images, names = pictures(24)
    router.fit(described(images), names)
    return router


@pytest.mark.parametrize("stage", STAGES)
def test_class_router__finds_the_class_of_new_images(stage):
    router = fitted(stage, textures=("carpet",) if stage == "pixel_histogram" else ())
    images, names = pictures(15, seed=1)
    route = router.route(described(images))
    assert [router.names[i] for i in route.index.tolist()] == names
    assert bool(route.known.all())
    assert bool((route.margin > 0).all())


@pytest.mark.parametrize("stage", STAGES)
def test_class_router__flags_a_class_never_seen(stage):
    images, _ = pictures(4, seed=2)
    strange = images.flip(-1).mul(-1.0) + 1.5
    assert not bool(fitted(stage).route(described(strange)).known.any())


def test_class_router__centroids_are_the_class_means_and_margin_the_gap():
    router = fitted("centroid")
    images, names = pictures(24)
    pooled = described(images).pooled
    mean = torch.stack([pooled[[n == name for n in names]].mean(0) for name in NAMES])
    torch.testing.assert_close(router.centroid, mean)
    distance = ((pooled[:, None] - mean) @ router.basis).norm(dim=2).sort(dim=1).values
    torch.testing.assert_close(router.route(described(images)).margin, distance[:, 1] - distance[:, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_class_router__does_not_depend_on_the_order_of_images(stage):
    images, names = pictures(21)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    one, other = ClassRouter(ClassRouting(stage)), ClassRouter(ClassRouting(stage))
    one.fit(described(images), names)
    other.fit(described(images[order]), [names[i] for i in order.tolist()])
    torch.testing.assert_close(one.limit, other.limit, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.centroid, other.centroid)


@pytest.mark.parametrize("stage", STAGES)
def test_class_router__of_one_class_or_one_image_knows_it(stage):
    images, names = pictures(1)
    router = ClassRouter(ClassRouting(stage))
    router.fit(described(images), names)
    route = router.route(described(images))
    assert route.index.tolist() == [0]
    assert bool(route.known)
    assert float(route.margin) == torch.inf


def test_class_router__limits_come_from_images_that_were_held_out():
    images, names = pictures(12)
    strict = ClassRouter(ClassRouting(quantile=1.0, slack=1.0))
    strict.fit(described(images), names)
    own = ((strict.centroid[[NAMES.index(n) for n in names]] - described(images).pooled) @ strict.basis).norm(dim=1)
    largest = [max(float(own[i]) for i, n in enumerate(names) if n == name) for name in NAMES]
    assert all(float(limit) > used for limit, used in zip(strict.limit, largest, strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_class_router__is_stored_in_buffers_with_its_names(stage):
    router = fitted(stage)
    other = ClassRouter(ClassRouting(stage))
    for name, value in router.state_dict().items():
        setattr(other, name, value)
    images, _ = pictures(6, seed=3)
    assert other.names == NAMES
    assert torch.equal(other.route(described(images)).index, router.route(described(images)).index)


def test_class_router__keeps_names_of_any_letters():
    images, _ = pictures(2)
    router = ClassRouter(ClassRouting())
    router.fit(described(images), ["Kachel/groß", "螺丝"])
    assert router.names == ["Kachel/groß", "螺丝"]


def test_class_router__is_not_used_before_it_is_fitted():
    with pytest.raises(NotFittedError, match="knows no classes"):
        ClassRouter(ClassRouting()).route(described(pictures(2)[0]))


def test_class_router__refuses_what_does_not_fit():
    images, names = pictures(3)
    with pytest.raises(ValueError, match="one category for each"):
        ClassRouter(ClassRouting()).fit(described(images), names[:2])
    with pytest.raises(ValueError, match=r"textures.*wood"):
        ClassRouter(ClassRouting("pixel_histogram", textures=("wood",))).fit(described(images), names)


@pytest.mark.parametrize("wrong", [{"stage": "nearest"}, {"quantile": 0.0}, {"slack": 0.9}])
def test_class_routing__refuses_arguments_outside_their_range(wrong):
    with pytest.raises(ValueError, match="Expected"):
        ClassRouting(**wrong)


def test_describe_images__leaves_out_what_holds_no_data():
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    image[:, :, :16] = torch.nan
    features = torch.ones(2, 4, 8, 8)
    features[:, :, :4] = 99.0
    covered = torch.zeros(2, 8, 8, dtype=torch.bool)
    covered[:, 4:] = True
    found = describe_images(image, features, covered)
    assert torch.equal(found.pooled, torch.ones(2, 4))
    whole = image[:, :, 16:]
    torch.testing.assert_close(found.thumbnail.view(2, 3, 16, 16)[:, :, 8:], torch.nn.functional.avg_pool2d(whole, 2))
    counts = torch.stack([torch.histc(band.clamp(-2.99, 2.99), 16, -3, 3) for band in whole.flatten(0, 1)])
    torch.testing.assert_close(found.histogram.view(6, 16), counts / counts.sum(1, keepdim=True))


def test_class_scale__gives_scores_in_units_of_their_class():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(5000, generator=generator)
    scale = ClassScale()
    scale.fit([3 + 2 * base, 10 * base, torch.empty(0)])
    route = Route(torch.tensor([0, 1, 1, 2]), torch.ones(4), torch.tensor([True, True, False, True]))
    score = scale(torch.stack([torch.full((2, 2), v) for v in (4.0, 5.0, 5.0, 5.0)]), route)[:, 0, 0]
    torch.testing.assert_close(score[0], score[1], rtol=1e-4, atol=1e-4)  # both in the middle of their class
    torch.testing.assert_close(score[2], score[3])  # not known, and without scores of its own: in units of all
    assert float(score[1] - score[2]) != 0.0


def test_class_scale__of_equal_scores_stays_finite():
    scale = ClassScale()
    scale.fit([torch.ones(9), torch.empty(0)])
    route = Route(torch.tensor([0, 1]), torch.ones(2), torch.ones(2, dtype=torch.bool))
    assert bool(scale(torch.full((2, 1, 1), 3.0), route).isfinite().all())
    scale.fit([torch.empty(0)])
    assert torch.equal(
        scale(torch.full((1, 1, 1), 3.0), Route(torch.zeros(1).long(), torch.ones(1), torch.ones(1).bool())).flatten(), torch.tensor([3.0])
    )


def test_image_descriptors__choose_images():
    parts = ImageDescriptors(torch.arange(3.0)[:, None], torch.zeros(3, 2), torch.ones(3, 1))
    assert parts.of(torch.tensor([2, 0])).pooled.flatten().tolist() == [2.0, 0.0]


def test_route__is_the_same_under_autocast():
    router, images = fitted("centroid"), described(pictures(6, seed=1)[0])
    plain = router.route(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = router.route(images)
    assert torch.equal(inside.index, plain.index)
    assert torch.equal(inside.margin, plain.margin)


def test_place_in_class__numbers_members_in_their_order():
    label = torch.tensor([2, 0, 2, 2, 0, 4])
    place, count = place_in_class(label)
    assert place.tolist() == [0, 0, 1, 2, 1, 0]
    assert count.tolist() == [3, 2, 3, 3, 2, 1]

import math

import torch

from anomseg.data.defect_noise import drawn_texture, fractal_noise, perlin_noise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_perlin_noise__is_zero_at_the_corners_of_its_lattice_and_bounded():
    noise = perlin_noise((64, 48), (8, 6), generator())
    assert float(noise[::8, ::8].abs().max()) == 0.0
    assert 0.2 < float(noise.abs().max()) <= math.sqrt(0.5) + 1e-6


def test_perlin_noise__is_the_formula_at_a_pixel():
    noise = perlin_noise((4, 4), (1, 1), generator(3))
    angle = 2 * math.pi * torch.rand(2, 2, generator=generator(3))
    y, x = 0.25, 0.75
    fade = [6 * t**5 - 15 * t**4 + 10 * t**3 for t in (y, x)]
    dots = [[math.cos(angle[r, c]) * (y - r) + math.sin(angle[r, c]) * (x - c) for c in (0, 1)] for r in (0, 1)]
    rows = [dots[r][0] * (1 - fade[1]) + dots[r][1] * fade[1] for r in (0, 1)]
    assert math.isclose(float(noise[1, 3]), rows[0] * (1 - fade[0]) + rows[1] * fade[0], abs_tol=1e-6)


def test_perlin_noise__is_smooth_across_cells():
    noise = perlin_noise((128, 128), (4, 4), generator())
    assert float(noise.diff(dim=0).abs().max()) < 0.12  # 32 pixels a cell, slope of at most a few cells


def test_fractal_noise__is_standardised_and_finer_with_more_cells():
    coarse, fine = (fractal_noise((64, 96), cells, generator()) for cells in (2, 12))
    for noise in (coarse, fine):
        torch.testing.assert_close(noise.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(noise.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert float(fine.diff(dim=1).abs().mean()) > 2 * float(coarse.diff(dim=1).abs().mean())


def test_drawn_texture__keeps_the_range_of_each_band_and_varies():
    low, high = torch.tensor([0.0, -5.0]), torch.tensor([1.0, 100.0])
    kinds = [drawn_texture((32, 40), low, high, generator(seed)) for seed in range(12)]
    for texture in kinds:
        assert texture.shape == (2, 32, 40)
        assert bool((texture >= low[:, None, None] - 1e-4).all())
        assert bool((texture <= high[:, None, None] + 1e-4).all())
        assert float(texture.std()) > 0

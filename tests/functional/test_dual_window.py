import torch

from anomseg.functional.dual_window import dual_window_scores, oas_shrinkage


def scene(height=15, width=17, bands=4):
    pixels = torch.randn(height, width, bands, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.pad(pixels, (1, 0), value=1.0)


def test_dual_window_scores__does_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = dual_window_scores(scene(), 3, 7, 0.0)
        torch.set_num_threads(3)
        shared = dual_window_scores(scene(), 3, 7, 0.0)
        assert torch.get_num_threads() == 3
        with torch.inference_mode():
            assert torch.equal(dual_window_scores(scene(), 3, 7, 0.0), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone, shared)


def test_dual_window_scores__equals_one_pixel_written_out():
    whole = scene()
    row, column = 7, 8
    window = torch.ones(15, 17, dtype=torch.bool)
    window[:, :] = False
    window[row - 3 : row + 4, column - 3 : column + 4] = True
    window[row - 1 : row + 2, column - 1 : column + 2] = False
    background, pixel = whole[window][:, 1:], whole[row, column, 1:]
    difference = pixel - background.mean(0)
    expected = difference @ torch.linalg.inv(torch.cov(background.T)) @ difference
    torch.testing.assert_close(dual_window_scores(whole, 3, 7, 0.0)[row, column], expected)


def test_oas_shrinkage__lies_between_none_and_all():
    wide, narrow = torch.diag(torch.tensor([100.0, 1.0, 0.01])).double(), torch.eye(3).double()
    count = torch.tensor(50.0, dtype=torch.float64)
    assert 0 < oas_shrinkage(wide, count) < 0.2
    assert oas_shrinkage(narrow, count) == 1.0

import os

import torch

from anomseg.data.outlier_files import PictureMemory, changed_at, visible_files


def touch(path, seconds):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    os.utime(path.parent, (seconds, seconds))


def test_visible_files__leaves_out_hidden_files_and_sees_new_ones(tmp_path):
    folder = tmp_path / "a"
    for number, name in enumerate(("b.png", "._b.png", "a.JPG", "c.txt")):
        touch(folder / name, number)
    assert [path.name for path in visible_files(folder)] == ["a.JPG", "b.png"]
    assert [path.name for path in visible_files(folder, (".png",))] == ["b.png"]
    touch(folder / "d.png", 9)
    assert [path.name for path in visible_files(folder, (".png",))] == ["b.png", "d.png"]
    assert visible_files(tmp_path) == ()
    assert len(visible_files(tmp_path, deep=True)) == 3
    assert visible_files(tmp_path / "none") == ()


def test_picture_memory__holds_the_latest_pictures_as_bytes_and_reads_changed_ones(tmp_path):
    reads = []

    def read(path):
        reads.append(path.name)
        return torch.arange(100.0).view(1, 10, 10) / 255

    files = [tmp_path / name for name in "abc"]
    for path in files:
        path.write_bytes(b"")
    memory = PictureMemory(250)
    for index in (0, 1, 0, 2, 0, 1):
        assert torch.equal(memory.get(files[index], read).flatten().int(), torch.arange(100, dtype=torch.int32))
        assert memory.nbytes <= 250
    assert reads == ["a", "b", "c", "b"]
    os.utime(files[1], (5, 5))
    memory.get(files[1], read)
    assert reads[-2:] == ["b", "b"]
    large = PictureMemory(1)
    large.get(files[0], read)
    assert large.nbytes == 100


def test_changed_at__is_zero_where_nothing_is(tmp_path):
    assert changed_at(tmp_path / "none") == 0
    assert changed_at(tmp_path) > 0

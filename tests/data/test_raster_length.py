from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from anomseg.data.raster_length import check_end, check_length
from anomseg.errors import SceneFormatError


@pytest.mark.parametrize(("tags", "missing"), [({}, 0), ({"header_offset": "8"}, 8), ({"file_compression": "1"}, 0)])
def test_check_length__counts_the_bytes_that_the_header_says(tmp_path, tags, missing):
    dataset = SimpleNamespace(count=3, height=4, width=5, dtypes=["int16"], tags=lambda ns: tags)
    data = tmp_path / "a.dat"
    data.write_bytes(bytes(120 + missing))
    check_length(dataset, data)
    data.write_bytes(bytes(119 + missing))
    if tags.get("file_compression"):
        check_length(dataset, data)
        return
    with pytest.raises(SceneFormatError, match=rf"Expected {120 + missing} bytes .* 3 bands of 4x5 int16, but got {119 + missing}"):
        check_length(dataset, data)


def test_check_end__wants_the_last_chunk_of_a_png_file(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90), dtype=np.uint8)).save(path)
    check_end(path)
    path.write_bytes(path.read_bytes() + bytes(100))  # some programs write a little more
    check_end(path)
    path.write_bytes(path.read_bytes()[:-120])
    with pytest.raises(SceneFormatError, match="cut short"):
        check_end(path)

"""A collector that is killed between two deletions leaves a store that is sound and can be gone on with."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from imagebuild import Image, Store, pull
from imagebuild.store.collector import remove
from imagebuild.store.verify import verify
from tests.sample_images import some_layers, write_layout


def _image(store: Store, folder: Path) -> Image:
    layout = write_layout(folder / "layout", {"one": some_layers(2)})
    return pull(f"oci:{layout}:one", store=store, platform="linux/amd64")


@pytest.mark.parametrize("deletions", range(8))
def test_a_collector_that_dies_leaves_nothing_half(
    deletions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    image = _image(store, tmp_path)
    left = iter(range(deletions))
    unlink = Path.unlink

    def dying(path: Path, missing_ok: bool = False) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(Path, "unlink", dying)
        remove(store, image.reference)
    assert verify(store) == []
    assert [layer.diff_id for layer in _image(store, tmp_path).layers] == [layer.diff_id for layer in image.layers]
    assert verify(store) == []

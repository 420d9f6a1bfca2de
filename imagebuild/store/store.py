"""The local store: images, their layers as EROFS files, and what belongs to them, under one folder.

    format                          the number of this arrangement
    blobs/sha256/<hex>              manifests, configs, and layers as they came where they are kept
    layers/<key>.erofs, .json       a converted layer, and its size and checksum
    images/<digest>.json            an image: its manifest, config and layers (image.py)
    tags/<hash of name>.json        a name and the digest it stands for
    holds/<hash of owner>.json      an owner that needs an image whether or not it runs now
    disks/<key>/disk.vmdk           the disk made of an image's layers
    leases/, locks/, tmp/           what living processes need, exclude each other by, and work on

Whatever has a name is whole: files are finished under ``tmp/``, synced, and then renamed.  The order is content before
record, record before tag, so a kill at any instant leaves at worst content that nobody names, which ``gc`` collects.

Two processes: one layer is converted under that layer's lock; ``store.lock`` is taken shared by whoever adds a name or
a lease, and alone by the collector.  Nobody holds it while working, so nobody waits for long.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from imagebuild.digest import digest_of, digest_problem, verify_bytes
from imagebuild.disk import vmdk
from imagebuild.errors import ImageNameError, ManifestError, StoreError
from imagebuild.files import explained, publish, sync_file, write_whole
from imagebuild.locks import locked
from imagebuild.oci.imageconfig import ImageConfig, parse_config
from imagebuild.oci.manifest import Manifest, parse_manifest
from imagebuild.oci.reference import Reference
from imagebuild.store.image import Image, ImageRecord, Layer, LayerRecord
from imagebuild.store.lease import Lease, Needs, new_name, workspace

FORMAT = 1
LAYER_SUFFIX = ".erofs"
_FOLDERS = ("blobs/sha256", "layers", "images", "tags", "holds", "disks", "leases", "locks", "tmp")
_SHORTEST_ID = 4  # digits of an image ID that will do, if only one image begins so


class Store:
    """The store in one folder, which is made if it is not there.  Safe to use from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        with explained("open store", str(root)):
            for folder in _FOLDERS:
                (self.root / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check_format()

    def _check_format(self) -> None:
        path = self.root / "format"
        try:
            found = path.read_text().strip()
        except FileNotFoundError:
            write_whole(path, b"%d\n" % FORMAT)
            return
        if found != str(FORMAT):
            remedy = "use the program that made it, or set VCH_HOME to another folder"
            raise StoreError("open store", str(self.root), f"its format is {found}, and {FORMAT} is known", remedy)

    # --- places ------------------------------------------------------------------------------------------------------

    def folder(self, name: str) -> Path:
        """One of the store's folders."""
        return self.root / name

    def blob_path(self, digest: str) -> Path:
        """Where a blob is, if it is there.  ``digest`` may come from anywhere: it is checked."""
        if problem := digest_problem(digest):
            raise StoreError("find blob", ascii(digest)[1:100], problem)
        algorithm, _, digits = digest.partition(":")
        return self.root / "blobs" / algorithm / digits

    def layer_path(self, key: str) -> Path:
        """Where a converted layer is, if it is there."""
        return self.root / "layers" / f"{key}{LAYER_SUFFIX}"

    def facts_path(self, key: str) -> Path:
        """Where the facts to verify a converted layer by are."""
        return self.root / "layers" / f"{key}.json"

    def record_path(self, digest: str) -> Path:
        """Where the record of the image with this manifest digest is."""
        return self.root / "images" / f"{digest.replace(':', '-')}.json"

    # --- locks and leases --------------------------------------------------------------------------------------------

    def lock(self, *, exclusive: bool = False) -> AbstractContextManager[int]:
        """The lock of the whole store: shared to add a name or a lease, exclusive to delete what has none."""
        return locked(self.root / "store.lock", shared=not exclusive)

    def layer_lock(self, key: str, waiting: Callable[[], None]) -> AbstractContextManager[int]:
        """The right to convert one layer; ``waiting`` is called while another has it, and may raise."""
        return locked(self.root / "locks" / key, waiting=waiting)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A directory for unfinished work, on the same file system as the rest."""
        with ExitStack() as stack:
            with self.lock():
                path = stack.enter_context(workspace(self.folder("tmp")))
            yield path

    def lease(self, needs: Needs) -> Lease:
        """Keep the collector off ``needs``, whether they are there already or not."""
        with explained("lease", "store"), self.lock():
            return Lease(self.folder("leases") / new_name(), needs)

    def pin(self, image: Image) -> Lease:
        """Keep an image, its layers and its disk until the lease is released or its last owner dies.

        Raises StoreError if the image was collected meanwhile.
        """
        record = self._record(image.digest)
        lease = self.lease(record_needs(record))
        missing = [layer for layer in image.layers if not layer.path.exists()]
        if missing or not self.record_path(image.digest).exists():
            lease.release()
            raise StoreError("pin image", image.reference, "it was removed meanwhile", "pull it again")
        return lease

    # --- blobs -------------------------------------------------------------------------------------------------------

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is kept."""
        return self.blob_path(digest).exists()

    def read_blob(self, digest: str) -> bytes:
        """A small blob (a manifest or config), verified."""
        remedy = "imagebuild verify --repair, then pull the image again"
        try:
            raw = self.blob_path(digest).read_bytes()
            verify_bytes(raw, digest, "blob")
        except FileNotFoundError:
            raise StoreError("read blob", digest, "not in the store", remedy) from None
        except ManifestError as error:
            raise StoreError("read blob", digest, error.cause, remedy) from None
        return raw

    def put_blob(self, raw: bytes, digest: str = "") -> str:
        """Keep a small blob under ``digest``, which the caller has verified; its sha256 digest if not given."""
        digest = digest or digest_of(raw)
        path = self.blob_path(digest)
        with explained("store blob", digest):
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                write_whole(path, raw)
        return digest

    def adopt_blob(self, temporary: Path, digest: str) -> None:
        """Keep the finished file ``temporary``, whose content has been verified, as a blob."""
        path = self.blob_path(digest)
        with explained("store blob", digest):
            path.parent.mkdir(exist_ok=True)
            publish(temporary, path)

    def adopt_layer(self, temporary: Path, key: str, facts: bytes) -> Path:
        """Keep the finished file ``temporary`` as the layer ``key``."""
        path = self.layer_path(key)
        with explained("store layer", key):
            write_whole(self.facts_path(key), facts)
            publish(temporary, path)
        return path

    # --- images ------------------------------------------------------------------------------------------------------

    def add(
        self,
        manifest: Manifest,
        config: ImageConfig,
        layers: Iterable[LayerRecord],
        *,
        digest: str = "",
        origin: str = "",
        names: Iterable[str] = (),
    ) -> Image:
        """Record an image whose layers are there (and leased), and give it ``names``."""
        digest = self.put_blob(manifest.raw, digest or manifest.digest)
        self.put_blob(config.raw, manifest.config.digest)
        # A copy that came in an archive does not make the registry forget the image.
        origin = origin or self._known_origin(digest)
        record = ImageRecord(digest, manifest.config.digest, tuple(layers), origin, time.time())
        names = list(names)
        with explained("record image", digest), self.lock():
            write_whole(self.record_path(digest), record.to_json())
            for name in names:
                self._write_name("tags", name, digest)
        return self._image(names[0] if names else digest, record, manifest, config)

    def get(self, digest: str, reference: str = "") -> Image:
        """The image with this manifest digest; StoreError if it is not there or damaged."""
        record = self._record(digest)
        manifest = parse_manifest(self.read_blob(record.manifest), subject=record.manifest)
        if not isinstance(manifest, Manifest):
            raise StoreError("read image", digest, "its manifest is an index", "imagebuild verify --repair")
        config = parse_config(self.read_blob(record.config), record.config)
        return self._image(reference or digest, record, manifest, config)

    def find(self, name: str) -> Image | None:
        """The image that a user means by a name, an image ID or a digest, or the beginning of one of those two."""
        full = canonical(name)
        if tagged := self.named(full):
            return self.get(tagged, full)
        if found := self._find_id(name):
            return self.get(found)
        return None

    def _find_id(self, name: str) -> str | None:
        digits = name.rpartition("@")[2].removeprefix("sha256:")
        if len(digits) < _SHORTEST_ID or digits.strip("0123456789abcdef"):
            return None
        matches = {r.manifest for r in self.records() if any(_begins(d, digits) for d in (r.manifest, r.config))}
        if len(matches) > 1:
            raise StoreError("find image", name, f"{len(matches)} images begin so", "give more digits")
        return matches.pop() if matches else None

    def records(self) -> list[ImageRecord]:
        """The records of all images that can be read, oldest first."""
        found = []
        for path in self.folder("images").glob("*.json"):
            try:
                found.append(ImageRecord.from_json(path.read_bytes(), path.name))
            except (FileNotFoundError, StoreError):
                continue  # collected meanwhile, or for ``verify`` to report
        return sorted(found, key=lambda record: (record.stored, record.manifest))

    def record(self, image: Image) -> ImageRecord:
        """What is written down of an image."""
        return self._record(image.digest)

    def _record(self, digest: str) -> ImageRecord:
        try:
            return ImageRecord.from_json(self.record_path(digest).read_bytes(), digest)
        except FileNotFoundError:
            raise StoreError("read image", digest, "not in the store", "pull it") from None

    def _known_origin(self, digest: str) -> str:
        try:
            return self._record(digest).origin
        except StoreError:
            return ""

    def _image(self, name: str, record: ImageRecord, manifest: Manifest, config: ImageConfig) -> Image:
        layers = []
        for one in record.stack():
            path = self.layer_path(one.key)
            layers.append(
                Layer(one.diff_id, one.digest, one.size, one.media_type, path, one.data_size, one.verity_root)
            )
            if one.patch:
                path = self.layer_path(one.patch)
                layers.append(Layer(key_digest(one.patch), "", 0, "", path, one.patch_size, one.patch_root))
        return Image(name, record.manifest, manifest, config, tuple(layers), self._disk)

    def is_whole(self, image: Image) -> bool:
        """Whether all of the image's layers are there."""
        return all(layer.path.exists() for layer in image.layers)

    # --- names -------------------------------------------------------------------------------------------------------

    def tags(self) -> dict[str, str]:
        """All names and the manifest digests they stand for."""
        return self._names("tags")

    def named(self, full: str) -> str:
        """The manifest digest that a name in full stands for, "" if none: what ``tags`` says of it, in one read."""
        return self._named(self.name_path("tags", full)).get(full, "")

    def tag(self, name: str, image: Image) -> str:
        """Give an image one more name, taking it from whichever image had it; the name in full."""
        full = canonical(name)
        with explained("tag", full), self.lock():
            self._record(image.digest)
            self._write_name("tags", full, image.digest)
        return full

    def untag(self, name: str) -> str:
        """Take a name away; the digest it stood for.  The image stays until ``gc``."""
        full = canonical(name)
        with explained("untag", full), self.lock():
            digest = self.tags().get(full)
            if digest is None:
                raise StoreError("untag", name, "no image has this name", "imagebuild ls shows the names there are")
            self.drop_name("tags", full)
        return digest

    def holds(self) -> dict[str, str]:
        """The owners that need an image, and its manifest digest."""
        return self._names("holds")

    def hold(self, owner: str, image: Image) -> None:
        """Keep an image for ``owner`` (a container that may start again) until ``release``, restarts included."""
        with explained("hold", image.reference), self.lock():
            self._record(image.digest)
            self._write_name("holds", owner, image.digest)

    def release(self, owner: str) -> None:
        """End a hold, if there is one."""
        with explained("release", owner), self.lock():
            self.drop_name("holds", owner)

    def drop_name(self, kind: str, name: str) -> None:
        """Delete a tag or a hold, if it is there; for who holds the store's lock."""
        self.name_path(kind, name).unlink(missing_ok=True)

    def name_path(self, kind: str, name: str) -> Path:
        """Where a tag or a hold is written."""
        # Hashed, because an image name may be longer than a file name, and holds slashes.
        return self.root / kind / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    def _write_name(self, kind: str, name: str, digest: str) -> None:
        write_whole(self.name_path(kind, name), json.dumps({"name": name, "digest": digest}).encode())

    def _names(self, kind: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in self.folder(kind).glob("*.json"):
            found.update(self._named(path))
        return dict(sorted(found.items()))

    @staticmethod
    def _named(path: Path) -> dict[str, str]:
        """The name in such a file and the digest it stands for; nothing if the file is not there, or damaged."""
        try:
            document = json.loads(path.read_bytes())
            return {str(document["name"]): str(document["digest"])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}

    # --- disks -------------------------------------------------------------------------------------------------------

    def _disk(self, layers: tuple[Layer, ...]) -> Path:
        """The disk of a stack of layers, made at the first call."""
        folder = self.folder("disks") / disk_key(layer.path.name.removesuffix(LAYER_SUFFIX) for layer in layers)
        path = folder / vmdk.DESCRIPTOR_NAME
        if path.exists():
            return path
        with explained("make image disk", str(folder)), self.workspace() as space:
            temporary = space / "disk"
            temporary.mkdir()
            vmdk.image_disk(
                [vmdk.DiskLayer(layer.diff_id, layer.path) for layer in layers], temporary, links_from=folder
            )
            for file in temporary.iterdir():
                if not file.is_symlink():
                    sync_file(file)
            try:
                temporary.rename(folder)
            except OSError:
                if not path.exists():  # else another was faster, with the same result
                    import shutil

                    shutil.rmtree(folder, ignore_errors=True)
                    temporary.rename(folder)
        return path


def canonical(name: str) -> str:
    """A name in full, as tags have it; what is no registry's image name (``oci:...``) stands for itself."""
    try:
        reference = Reference.parse(name)
    except ImageNameError:
        return name
    return f"{reference.name}@{reference.digest}" if reference.digest else str(reference)


def record_needs(record: ImageRecord) -> Needs:
    """Everything that an image consists of, and its disk."""
    return Needs(
        layers=frozenset(key for layer in record.layers for key in (layer.key, layer.patch) if key),
        blobs=frozenset([record.manifest, record.config, *(layer.digest for layer in record.layers)]),
        disks=frozenset([disk_key(record.files())]),
        images=frozenset([record.manifest]),
    )


def layer_key(digest: str, kind: str) -> str:
    """The name of a layer's file: whose content it is, and which kind and version of file."""
    return f"{digest.replace(':', '-')}.{kind}"


def key_digest(key: str) -> str:
    """Whose content the file of this name is: the digest that ``layer_key`` was given."""
    return key.partition(".")[0].replace("-", ":")


def disk_key(layers: Iterable[str]) -> str:
    """The name of the disk of a stack of layers, given by their keys: equal stacks share one."""
    return hashlib.sha256("\n".join(layers).encode()).hexdigest()


def _begins(digest: str, digits: str) -> bool:
    return digest.partition(":")[2].startswith(digits)

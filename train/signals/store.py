"""A store of signals: written once by ``python -m train.teach``, read while a run trains.

A store is a folder. Its README beside this file says what lies in it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from qwen35_jax.hf.safetensors import DTYPES, read_header
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import array_sharding
from qwen35_jax.storage import file_digest
from train.batch import Fields
from train.config.data import DataConfig
from train.data.documents import Documents
from train.data.masking import Example
from train.signals.header import Header, differences, make_header, missing_sources
from train.signals.shard_file import KEY_BYTES, Rows, ShardFile, read_shard
from train.signals.signal import SignalSettings, signal_fields

HEADER, MANIFEST, HEAD = "header.json", "manifest.json", "head.safetensors"
SHARDS = "signals-*.safetensors"
HEAD_TENSOR = "teacher_head"


class Store:
    """A whole store that was checked when it was opened; what is read of it is checked when it is read."""

    def __init__(self, folder: Path, header: Header, manifest: Mapping[str, Any], shards: list[ShardFile]):
        """Use ``open``."""
        self.folder, self.header, self._manifest, self._shards = folder, header, manifest, shards
        keys = np.concatenate([shard.keys for shard in shards]) if shards else np.empty((0, KEY_BYTES), np.uint8)
        numbers = np.concatenate([np.full(len(shard.keys), n) for n, shard in enumerate(shards)] or [np.empty(0, int)])
        places = np.concatenate([np.arange(len(shard.keys)) for shard in shards] or [np.empty(0, int)])
        # Sorted keys take 32 bytes a document; a dictionary would take several hundred.
        names = np.ascontiguousarray(keys).view(f"S{KEY_BYTES}").reshape(-1)
        order = np.argsort(names, kind="stable")
        self._keys, self._numbers, self._places = names[order], numbers[order], places[order]

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Opens a store and checks that all of it is there and that nothing but the payload can have changed.

        Raises:
          ValueError: the folder holds no store, or one that is not complete, is cut short or is damaged.
        """
        folder = Path(folder).expanduser()
        manifest = _read_manifest(folder)
        try:
            header_bytes = (folder / HEADER).read_bytes()
            if hashlib.sha256(header_bytes).hexdigest() != manifest["header"]:
                raise ValueError(f"{folder / HEADER} is not the file that {MANIFEST} lists: it has changed.")
            header = read_header_file(folder)
            shards = [_open_shard(folder, entry) for entry in manifest["shards"]]
            if (head := manifest["head"]) is not None:
                _check_size(folder / HEAD, head["bytes"])
        except (OSError, ValueError) as err:
            raise ValueError(f"{_told(err)} {_REMEDY}") from err
        return cls(folder, header, manifest, shards)

    @property
    def fields(self) -> Fields:
        """The arrays that it adds to a batch."""
        return signal_fields(self.header)

    @property
    def totals(self) -> Mapping[str, int]:
        """Its ``documents``, ``tokens`` that have a signal, and ``bytes``."""
        return self._manifest["totals"]

    @property
    def width(self) -> int:
        """Width of the teacher."""
        return self.header.width

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells its teacher from others."""
        return self.header.teacher or {}

    def check(
        self,
        settings: SignalSettings,
        data: DataConfig,
        tokenizer: Tokenizer,
        *,
        vocabulary: int,
        teacher: Mapping[str, Any] | None = None,
    ) -> None:
        """Checks that the store belongs to the settings of a run; ``check_documents`` checks its data.

        Args:
          vocabulary: token ids of the student.
          teacher: what ``identify_teacher`` says of the teacher that the run names, if it names one.

        Raises:
          ValueError: it belongs to something else; the message names every difference.
        """
        wanted = make_header(settings, data, tokenizer, vocabulary=vocabulary, teacher=teacher)
        self._refuse(differences(self.header, wanted))

    def check_documents(self, documents: Documents) -> None:
        """Checks that the store was made from the sources of these documents, and maybe others.

        Raises:
          ValueError: it was not.
        """
        missing = missing_sources(self.header, documents.origins)
        self._refuse([] if missing is None else [missing])

    def _refuse(self, found: list[str]) -> None:
        if found:
            raise ValueError(
                f"the store {self.folder} does not belong to this run: {'; '.join(found)}. Or write another store with "
                "`python -m train.teach` and name it with --teacher.store."
            )

    def signals_of(self, example: Example) -> dict[str, np.ndarray]:
        """Reads the signal for a document: arrays [T, ...], zeros where nothing was stored.

        Raises:
          ValueError: the document is not in the store, or its signal is damaged.
        """
        number, place = self._find(example)
        try:
            rows = self._shards[number].read(place)
        except (OSError, ValueError) as err:
            raise ValueError(f"{_told(err)} {_REMEDY}") from err
        positions = predicting(example)
        if any(len(each) != len(positions) for each in rows.values()):
            raise ValueError(f"{self._shards[number].path}: its document {place} has other tokens. {_REMEDY}")
        return {name: _spread(each, positions, len(example)) for name, each in rows.items()}

    def head_on(self, mesh: Mesh) -> Float[Array, "V E"] | None:
        """Reads the weight of the teacher's head onto the mesh; None for a signal that needs none.

        Raises:
          ValueError: it is damaged.
        """
        if self._manifest["head"] is None:
            return None
        path = self.folder / HEAD
        if file_digest(path) != self._manifest["head"]["sha256"]:
            raise ValueError(f"{path} is damaged: it is not the file that {MANIFEST} lists. {_REMEDY}")
        stored = read_header(path)[HEAD_TENSOR]
        dtype = DTYPES[stored.dtype]

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            return stored.read(index, dtype)

        sharding = array_sharding(("vocab", "embed"), stored.shape, mesh)
        return jax.make_array_from_callback(stored.shape, sharding, read)

    def _find(self, example: Example) -> tuple[int, int]:
        """Returns the file that a document is in, and its place there."""
        key = np.asarray(document_key(example), self._keys.dtype)
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            number, changed = len(example.pictures), ""
            shown = f" and {number} images or videos" if number > 1 else " and an image or a video" if number else ""
            if number:
                changed = ", or before the file of " + ("one of these" if number > 1 else "it") + " changed"
            raise ValueError(
                f"a document of {len(example)} tokens{shown} is not in the store {self.folder}, which was written with "
                f"data.sequence_length={self.header.sequence_length} for other documents{changed}; write a store for "
                "these data and settings with `python -m train.teach`."
            )
        return int(self._numbers[place]), int(self._places[place])


_REMEDY = (
    "Put the file back from a copy; or remove it and manifest.json and run `python -m train.teach` again, which writes "
    "it and the files after it anew."
)


def document_key(example: Example) -> bytes:
    """Returns what identifies a document: a hash of its token ids, of which of them are trained, and of its pictures.

    Raises:
      ValueError: a picture cannot be read.
    """
    ids = np.ascontiguousarray(example.input_ids, "<i4")
    marks = np.packbits(np.asarray(example.trained, bool))
    pictures = b"".join(picture.key() for picture in example.pictures)
    whole = len(ids).to_bytes(8, "little") + ids.tobytes() + marks.tobytes() + pictures
    return hashlib.sha256(whole).digest()[:KEY_BYTES]


def predicting(example: Example) -> Int[np.ndarray, " R"]:
    """Returns the positions of a document that predict a trained token of it."""
    return np.flatnonzero(example.trained[1:])


def rows_of(example: Example, values: Mapping[str, np.ndarray]) -> Rows:
    """Returns what is stored of the signal [T, ...] for a document."""
    positions = predicting(example)
    return {name: each[positions] for name, each in values.items()}


def read_header_file(folder: Path) -> Header:
    """Reads what a store belongs to.

    Raises:
      ValueError: the file is damaged or of another version.
      OSError: it cannot be read.
    """
    path = folder / HEADER
    try:
        return Header.from_json(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError) as err:
        raise ValueError(f"{path} is not the header of a store that this version reads ({err}).") from err


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a manifest with its own checksum."""
    return {**content, "checksum": _checksum(content)}


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ValueError(f"there is no store {folder}; write it with `python -m train.teach` and the same run file.")
    if not path.exists():
        if not (folder / HEADER).exists():
            raise ValueError(f"{folder} holds no store: it has no {HEADER}; name another folder with --teacher.store.")
        raise ValueError(
            f"the store {folder} is not complete: it has {len(list(folder.glob(SHARDS)))} files and no {MANIFEST}. Run "
            "`python -m train.teach` with the same run file again; it goes on after the last whole file."
        )
    try:
        manifest = json.loads(path.read_bytes())
        if manifest.pop("checksum") != _checksum(manifest):
            raise ValueError("its checksum is another")
    except (ValueError, KeyError, AttributeError) as err:
        raise ValueError(
            f"{path} is damaged ({err}); remove it and run `python -m train.teach` again, which writes it anew."
        ) from err
    return manifest


def _open_shard(folder: Path, entry: Mapping[str, Any]) -> ShardFile:
    path = folder / entry["file"]
    _check_size(path, entry["bytes"])
    shard = read_shard(path)
    if shard.digest != entry["index"]:
        raise ValueError(f"{path}: its index is damaged: it is not the one that {MANIFEST} lists.")
    return shard


def _check_size(path: Path, wanted: int) -> None:
    size = path.stat().st_size
    if size != wanted:
        raise ValueError(f"{path} has {size} bytes instead of {wanted}: it is cut short or damaged.")


def _told(err: OSError | ValueError) -> str:
    """Returns the message of an error as a sentence."""
    message = f"{err.filename}: {err.strerror}" if isinstance(err, OSError) else str(err)
    return message if message.endswith(".") else f"{message}."


def _spread(rows: np.ndarray, positions: np.ndarray, length: int) -> np.ndarray:
    whole = np.zeros((length, *rows.shape[1:]), rows.dtype)
    whole[positions] = rows
    return whole

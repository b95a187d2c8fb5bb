"""Hub datasets: rows without their pixels, images by id. The `datasets` package is imported when one is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from evalkit.errors import ConfigError, DataError, unknown
from evalkit.images import MAX_PIXELS, FolderImages, RowImages
from evalkit.types import Hub, ImageStore, Json, Task


class HubSource:
    """A pinned dataset of the hub, or a local folder of its parquet files.

    Image columns are never decoded: rows come without them, and images are read as bytes, one by one, by id.
    """

    kind: Literal["hub"] = "hub"

    def __init__(
        self,
        task: Task,
        *,
        root: Path | None = None,
        given: Mapping[str, Path] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if task.hub is None:
            raise ConfigError(f"{task.name} is on no hub that evalkit knows; use data=files")
        for name in given or {}:
            if name != "images":
                known = [slot.name for slot in task.slots if slot.name == "images"]
                raise ConfigError(unknown("file slot of a hub dataset", name, known, "use data=files for the others"))
        self._hub: Hub = task.hub
        self._root = root
        self._images = (given or {}).get("images")
        self._max_pixels = max_pixels
        self._tables: dict[str | None, Any] = {}

    @property
    def custom(self) -> bool:
        """A hub split is an official set, or fails its manifest."""
        return False

    @property
    def description(self) -> str:
        """Where the rows come from, in words without a path."""
        config = f" {self._hub.config}" if self._hub.config else ""
        where = "local parquet files" if self._root is not None else f"@{self._hub.revision}"
        return f"hub {self._hub.repo}{config} {where}"

    def has(self, slot: str) -> bool:
        """Return False: a hub dataset has rows, no files."""
        return False

    def read(self, slot: str) -> Json:
        """A hub dataset has no files."""
        raise AssertionError("a task reads slots of a files source only")

    def path(self, slot: str) -> Path:
        """A hub dataset has no files."""
        raise AssertionError("a task reads slots of a files source only")

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of the split, image columns left out."""
        table = self._table(self._hub.config)
        drop = [name for name in table.column_names if name in self._image_columns(table)]
        return _Rows(table.remove_columns(drop) if drop else table)

    def images(self) -> ImageStore:
        """Return the store of the split's images: its own rows, another config's, or a folder given as data.images."""
        hub = self._hub
        if self._images is not None:
            return FolderImages(self._images, max_pixels=self._max_pixels)
        if not hub.image_id_column:
            return FolderImages(None, way_out=f"{hub.repo} holds no images: give data.images=DIR")
        table = self._table(hub.image_config or hub.config)
        for column in (hub.image_column, hub.image_id_column):
            if column not in table.column_names:
                raise DataError(f"{hub.repo} has no column {column!r}; it has {', '.join(table.column_names)}")
        pixels = table.select_columns([hub.image_column])
        return RowImages(
            table.select_columns([hub.image_id_column])[hub.image_id_column],
            lambda row: pixels[row][hub.image_column],
            max_pixels=self._max_pixels,
        )

    def _image_columns(self, table: Any) -> set[str]:
        from datasets import Image

        return {
            self._hub.image_column,
            *(name for name, feature in table.features.items() if isinstance(feature, Image)),
        }

    def _table(self, config: str | None) -> Any:
        """Return the undecoded table of a config, loaded once."""
        if config not in self._tables:
            import datasets

            table = self._local(config) if self._root is not None else self._remote(config)
            for name, feature in table.features.items():
                if isinstance(feature, datasets.Image):
                    table = table.cast_column(name, datasets.Image(decode=False))
            self._tables[config] = table
        return self._tables[config]

    def _remote(self, config: str | None) -> Any:
        import datasets

        hub = self._hub
        try:
            return datasets.load_dataset(hub.repo, config, split=hub.split, revision=hub.revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            # ValueError: an unknown config or split; OSError: network, disk, an address that is not there
            raise DataError(
                f"hub dataset {hub.repo} (config {config or 'default'}, split {hub.split}, revision {hub.revision}) "
                f"cannot be loaded: {error}; or give data.root=DIR with its parquet files"
            ) from error

    def _local(self, config: str | None) -> Any:
        import datasets

        assert self._root is not None
        files = self._parquet(config)
        try:
            return datasets.load_dataset("parquet", data_files=[str(path) for path in files], split="train")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            cause = error.__cause__ or error
            raise DataError(f"parquet files of {self._hub.repo} below {self._root} cannot be read: {cause}") from error

    def _parquet(self, config: str | None) -> list[Path]:
        """Return the split's files as the hub names them.

        <config>/<split>-00000-of-00001.parquet, data/<split>-..., or <config>/<split>/0000.parquet in the hub's copies.
        """
        assert self._root is not None
        split = self._hub.split
        folders = [self._root / config] if config else []
        folders += [self._root / "data", self._root, self._root / "default"]
        for folder in folders:
            files = [*folder.glob(f"{split}-*.parquet"), *folder.glob(f"{split}.parquet")]
            files = files or list((folder / split).glob("*.parquet"))
            if files:
                return sorted(files)
        if config is None and (files := sorted(self._root.glob(f"*/{split}/*.parquet"))):
            return files
        place = f"{config}/" if config else "data/"
        raise DataError(
            f"no parquet file of {self._hub.repo} for split {split!r} below {self._root}: "
            f"expected {place}{split}-00000-of-00001.parquet and the like"
        )


class _Rows(Sequence[Mapping[str, Any]]):
    """The rows of a table, read as they are asked for."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        return self._table[index]

    def __iter__(self) -> Any:
        return iter(self._table)

"""The image files that annotations list: found under the name that is meant, and of a known size."""

import os
from pathlib import Path, PureWindowsPath
from typing import Any

from ghm.data.findings import Findings
from ghm.data.images import upright_size

Entry = dict[str, Any]


def check_name(where: str, name: str) -> None:
    """ValueError for a file name that climbs out of the folder of the images."""
    path = PureWindowsPath(name)  # to it, / and \\ and C: all mean something
    if ".." in path.parts or path.anchor or "\0" in name:
        raise ValueError(f"{where}: file_name={name!r}: leaves the folder of the images; correct it or drop the entry")


def find(path: Path, images: list[Entry], folder: Path, findings: Findings) -> None:
    """Set every `file_name` to that of the file in `folder` which is meant.

    As listed, or else without its leading folders, with / for \\, or with an extension in other case: where exactly
    one file fits, and no two entries mean the same. ValueError names the first that is not there.
    """
    spellings = _Spellings(folder)
    listed = [entry["file_name"] for entry in images]
    meant = [name if os.path.isfile(folder / name) else spellings.meant(name) for name in listed]
    claims: dict[str | None, set[str]] = {}
    for name, found in zip(listed, meant, strict=True):
        claims.setdefault(found, set()).add(name)
    # Of two files of one name in different folders, the one that is there is not both.
    meant = [
        found if found == name or len(claims[found]) == 1 else None for name, found in zip(listed, meant, strict=True)
    ]
    missing = [entry for entry, found in zip(images, meant, strict=True) if found is None]
    if missing:
        first = missing[0]
        raise ValueError(
            f"{path}: image {first['id']} lists file_name={first['file_name']!r}, which is not in {folder} "
            f"({len(missing)} of {len(images)} missing); add the files, drop their entries, or name the folder "
            "with data.images=FOLDER"
        )
    for entry, found in zip(images, meant, strict=True):
        if found != entry["file_name"]:
            example = f"image {entry['id']}: {entry['file_name']!r} is {found!r}"
            findings.add("file names read as those of the files that fit", example)
            entry["file_name"] = found


def complete_sizes(images: list[Entry], folder: Path, findings: Findings) -> None:
    """Read width and height from the file where an entry has none. ValueError for a file that is no image."""
    for entry in images:
        if entry.get("width") is None or entry.get("height") is None:
            entry["width"], entry["height"] = upright_size(folder / entry["file_name"], entry)
            findings.add("width and height read from the image", f"image {entry['id']}: {entry['file_name']!r}")


class _Spellings:
    """Names of files as others may write them. Folders are listed when first asked for: most data needs none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def meant(self, name: str) -> str | None:
        """The one file that a name may mean, relative to the folder, or None."""
        parts = name.replace("\\", "/").split("/")
        for start in range(len(parts)):
            place = Path(*parts[start:-1])
            fits = self._files(place).get(_key(parts[-1]), [])
            exact = [fit for fit in fits if fit == parts[-1]]
            if len(found := exact or fits) == 1:
                return (place / found[0]).as_posix()
        return None

    def _files(self, place: Path) -> dict[str, list[str]]:
        if place not in self._listed:
            names: dict[str, list[str]] = {}
            try:
                entries = os.listdir(self.folder / place)
            except (OSError, ValueError):
                entries = []
            for entry in entries:
                if os.path.isfile(self.folder / place / entry):
                    names.setdefault(_key(entry), []).append(entry)
            self._listed[place] = names
        return self._listed[place]


def _key(name: str) -> str:
    """Equal for names that differ in the case of their extension alone."""
    stem, extension = os.path.splitext(name)
    return stem + extension.casefold()

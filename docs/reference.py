"""Writes docs/reference.md: every setting, with its default and its meaning, from the comments beside it in conf/.

`python docs/reference.py --check` says which key has no meaning, and fails where the page is not what it would write.
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference.md"
SWEEPER = ROOT / "sweeps" / "hydra_plugins" / "ghm_sweeper" / "conf"
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w./@]+):(?: +(?P<value>[^#\s].*?))?(?: +# (?P<meaning>.*))?$")
PLUMBING = ("defaults", "hydra", "_search_", "_target_", "_recursive_", "_convert_")  # no settings
HEAD = """# Every setting

Made from the comments in `conf/` by `python docs/reference.py`; edit them there. A setting is given as `KEY=VALUE`,
a file of a group as `GROUP=FILE`, as in `ghm train loss=focal loss.cls.gamma=1.5`. A file that builds on another has
its keys too. What `hydra.sweeper.search` goes through stands in the last column.
"""


@dataclass
class Key:
    name: str
    value: str
    meaning: str
    searched: str = ""


@dataclass
class File:
    """A file of settings: what its first lines say, what it builds on, and its keys in order."""

    path: Path
    said: str
    parents: list[str] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)

    @property
    def rows(self) -> list[str]:
        searched = any(key.searched for key in self.keys)
        head = ["key", "default", "meaning"] + ["searched"] * searched
        rows = [head, ["---"] * len(head)]
        rows += [
            [f"`{key.name}`", f"`{key.value}`" if key.value else "", key.meaning] + [_code(key.searched)] * searched
            for key in self.keys
        ]
        return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def read(path: Path) -> File:
    lines = path.read_text().splitlines()
    first = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    said = [line.removeprefix("#").strip() for line in lines[:first] if not line.startswith("# @package")]
    file = File(path, " ".join(" ".join(said).split()))
    if "# @package _global_" in lines[:1]:  # sets what is explained elsewhere
        return file
    above: list[tuple[int, str]] = []
    for line in lines[first:]:
        if line.strip().startswith("- ") and above and above[-1][1] == "defaults":
            file.parents.append(line.strip().removeprefix("- ").split(" #")[0])
        found = LINE.match(line)
        if found is None:
            continue
        indent = len(found["indent"])
        above = [(depth, key) for depth, key in above if depth < indent]
        names = [key for _, key in above] + [found["key"]]
        above.append((indent, found["key"]))
        _take(file, names, found["value"] or "", found["meaning"] or "")
    return file


def _take(file: File, names: list[str], value: str, meaning: str) -> None:
    if names[0] == "_search_" and len(names) > 1:
        for key in file.keys:
            if key.name == ".".join(names[1:]):
                key.searched = value
    elif names[0] not in PLUMBING and not set(names) & {"_target_", "trial"} and (value or meaning):
        file.keys.append(Key(".".join(names), value, meaning))


def files() -> dict[str, list[File]]:
    """By the title of their section."""
    conf = ROOT / "conf"
    found = {"`ghm train`": [conf / "train.yaml"]}
    groups = sorted({path.parent for path in conf.rglob("*.yaml")} - {conf, conf / "sweep" / "known"})
    for group in groups:
        found[f"`{group.relative_to(conf).as_posix()}=`"] = sorted(group.glob("*.yaml"))
    found["`hydra.sweeper`, for `ghm train -m`"] = [SWEEPER / "ghm.yaml"]
    for group in ("sampler", "pruner"):
        found[f"`hydra/sweeper/{group}=`"] = sorted((SWEEPER / group).glob("*.yaml"))
    for verb in ("evaluate", "check", "figures", "reproduce", "sync"):
        found[f"`ghm {'data check' if verb == 'check' else verb}`"] = [conf / f"{verb}.yaml"]
    return {title: [read(path) for path in paths] for title, paths in found.items()}


def page(sections: dict[str, list[File]]) -> str:
    lines = [HEAD]
    for title, group in sections.items():
        lines.append(f"## {title}\n")
        for file in group:
            if len(group) > 1:
                lines.append(f"### `{file.path.stem}`\n")
            builds = ", ".join(f"`{one}`" for one in file.parents if one != "_self_")
            lines.append(f"{file.said}{' Builds on ' + builds + '.' if builds and len(group) > 1 else ''}\n")
            if file.keys:
                lines += [*file.rows, ""]
    return "\n".join(lines).rstrip() + "\n"


def explain(sections: dict[str, list[File]]) -> list[str]:
    """Give keys without a comment of their own the meaning that another file of their group, or `ghm train`, gives
    them; those that have none then."""
    shared = [*sections["`ghm train`"], *sections["`model/rules=`"]]
    general = {key.name: key.meaning for file in shared for key in file.keys}
    found = []
    for group in sections.values():
        known = general | {key.name: key.meaning for file in group for key in file.keys if key.meaning}
        nodes = {key.name.rpartition(".")[0] for file in group for key in file.keys}  # of which their keys say it
        for file in group:
            for key in file.keys:
                key.meaning = key.meaning or known.get(key.name, "")
                above = known.get(key.name.rpartition(".")[0])
                if not key.meaning and not above and key.name not in nodes:
                    found.append(f"{file.path.name}: {key.name}")
    return found


def main() -> None:
    sections = files()
    if missing := explain(sections):
        raise SystemExit("say in a comment what these are:\n" + "\n".join(missing))
    text = page(sections)
    if "--check" not in sys.argv:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        raise SystemExit("docs/reference.md is not what conf/ says; run: python docs/reference.py")


if __name__ == "__main__":
    main()

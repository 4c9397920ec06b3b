"""The Helm chart as one file, as `helm package` makes it; but the same files give the same bytes."""

from pathlib import Path

import yaml


def chart_files(folder: Path) -> dict[str, bytes]:
    """Returns the files of a chart by their names in its package; what links lead to is in it, and not the links."""
    name = yaml.safe_load((folder / "Chart.yaml").read_text(encoding="utf-8"))["name"]
    ignored = (folder / ".helmignore").read_text(encoding="utf-8").split()
    assert all(each.endswith("/") for each in ignored), ".helmignore: only folders are understood here"
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {f"{name}/{each}": path.read_bytes() for each, path in files.items() if not each.startswith(tuple(ignored))}

"""Which checkpoint a folder means: that of a run, of checkpoints, or of one, wherever copied."""

from pathlib import Path

from dreamer.checkpoint import folder, manager, paths
from dreamer.checkpoint.storage import DOCUMENT
from dreamer.config import serialization
from dreamer.system import files


def checkpoint(path: Path, which: str = "newest") -> Path | None:
    """The folder of a checkpoint, or None.

    Args:
      path: absolute, of one checkpoint, of several, or of a run.
      which: newest or best, where there are several.

    Raises:
      UserError: the run's configuration cannot be read.
    """
    if is_checkpoint(path):
        return path
    directory = _directory(path)
    step = (manager.best if which == "best" else manager.newest)(directory)
    return None if step is None else directory / str(step)


def home(path: Path) -> Path | None:
    """The folder of config.yaml: this one, or for checkpoints one above it; or None."""
    places = [path]
    if is_checkpoint(path):
        places += [path.parent, path.parent.parent]
    elif _numbered(path):
        places.append(path.parent)
    return next((place for place in places if folder.saved_config(place) is not None), None)


def is_checkpoint(path: Path) -> bool:
    """Whether this is the folder of one checkpoint."""
    return (path / "state").is_dir() or (path / DOCUMENT).is_file()


def _directory(path: Path) -> Path:
    """Where the checkpoints are. Those inside win over `checkpoint.dir`: they were copied there."""
    for place in (path, path / paths.CHECKPOINTS):
        if _numbered(place):
            return place
    saved = folder.saved_config(path)
    name = str(path / folder.CONFIG)
    configured = serialization.from_yaml(saved, name).checkpoint.dir if saved else ""
    if configured:
        return paths.expand(configured, "checkpoint.dir").absolute()
    return path / paths.CHECKPOINTS


def _numbered(path: Path) -> bool:
    """Whether there are checkpoints directly in a folder."""
    return any(
        files.number(place.name) is not None and is_checkpoint(place) for place in path.glob("*")
    )

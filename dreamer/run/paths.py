"""Where a run keeps its files, and whether a folder may be resumed with a configuration."""

from pathlib import Path

from dreamer import compose
from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.run import folder


def run_folder(config: Config) -> Path:
    """`run.dir`, which composing fills with a name made of the choices when it is not given."""
    return Path(config.run.dir).expanduser()


def checkpoint_folder(config: Config) -> Path:
    """`checkpoint.dir`, or a folder inside the run folder."""
    folder = Path(config.checkpoint.dir or run_folder(config) / "checkpoints")
    return folder.expanduser().absolute()


def refuse_changes(config: Config, path: Path) -> None:
    """Compares with the configuration that the folder's run was started with.

    Raises:
      UserError: if they differ and `run.accept_changes` is not set.
    """
    saved = folder.saved_config(path)
    if saved is None or config.run.accept_changes:
        return
    changes = compose.differences(compose.from_yaml(saved), config)
    if changes:
        raise UserError(
            f"{path} holds a run with another configuration: {'; '.join(changes)}; "
            "choose another run.dir, or resume with the changes by run.accept_changes=true"
        )


def refuse_foreign_checkpoints(config: Config) -> None:
    """Keeps a new run from taking over what another one saved in `checkpoint.dir`.

    Raises:
      UserError: if there are checkpoints already.
    """
    directory = checkpoint_folder(config)
    if any(path.name.isdigit() for path in directory.glob("*")):
        raise UserError(
            f"checkpoint.dir={directory} holds the checkpoints of another run, and "
            f"{run_folder(config)} is new; choose another folder for one of them"
        )

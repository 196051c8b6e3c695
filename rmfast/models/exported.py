"""Whether the files of a model that rmfast exported are those that it wrote. Other folders have no checksums."""

import logging
import os
from pathlib import Path

from rmfast.errors import UserError
from rmfast.models.peft import chain
from rmfast.outputs.checksums import differences
from rmfast.outputs.marks import MODEL_MARK, exported_files

log = logging.getLogger(__name__)


def check_exported(path: Path) -> None:
    """Refuse weights that are not those that were exported; warn of other files, which people edit.

    Args:
        path: a model's folder; of an adapter its base is looked into too.

    Raises:
        UserError: names a file of weights.
    """
    adapters, base = chain(path)
    for folder in (*(adapter.path for adapter in adapters), base):
        try:
            written = exported_files(folder)
        except ValueError as error:
            _warn(folder, f"its files are not checked, for {MODEL_MARK} cannot be used: {error}")
            continue
        for name, what in differences(folder, written).items():
            if name.endswith(".safetensors"):
                raise UserError(
                    f"{folder / name}: {what}: damaged weights; export the model again, or, if they were changed on "
                    f"purpose, delete {MODEL_MARK} there"
                )
            _warn(folder, f"{name} {what}; it is taken as it is")


def _warn(folder: Path, text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of a run's processes, which all read the model
        log.warning("%s: %s", folder, text)

"""The files that a study needs on another machine, copied into one folder: its own file, that of its prompts, its plug-ins."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from lotts_search import registry
from lotts_search.errors import BadInput, notice
from lotts_search.study.prompts import prompt_file
from lotts_search.study.spec import Study

INSTALLED = {"site-packages", "dist-packages"}
IGNORED = shutil.ignore_patterns("__pycache__", ".git", ".venv", "*.pyc")


def pack(folder: Path, include: Sequence[Path] = (), study: Study | None = None) -> PurePath | None:
    """Copy what a study needs into a folder, in which ``lotts-search study`` then runs it.

    These are the study file, a file of prompts, the modules of its plug-ins, and ``include``, each at the path that it has
    from the current folder. Installed packages, models and data of verifiers are expected on the other machine.

    Args:
        include: files and folders below the current one.
        study: from :func:`~lotts_search.study.read.read_study`, which has imported its plug-ins.

    Returns:
        The path of the study file within ``folder``.

    Raises:
        BadInput: a file lies outside of the current folder, or a model is a local folder.
    """
    copies = {_place(path): path for path in include}
    file = None
    if study is not None:
        _check_models(study, include)
        file = _place(study.path) if _below(study.path) else PurePath(study.path.name)
        copies = {**dict(_modules()), **copies, **_prompts(study, file), file: study.path}
    for place, path in copies.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, ignore=IGNORED, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target)
    return file


def _check_models(study: Study, include: Sequence[Path]) -> None:
    """Refuse a model that is a folder beside the study, unless it is sent."""
    for model in study.models:
        path = Path(model.model)
        here = model.model not in registry.models() and path.is_dir() and not path.is_absolute()
        if here and not any(path.resolve().is_relative_to(other.resolve()) for other in include):
            raise BadInput(
                f"the model {model.model!r} is a folder of this machine: give the path that it has on all nodes of the cluster, "
                f"or send it along: --include {model.model}"
            )


def _prompts(study: Study, file: PurePath) -> dict[PurePath, Path]:
    """Return the file of the study's prompts by its place, beside the study ``file`` or in the folder of the job."""
    source = str(study.source.get("source"))
    found = prompt_file(source, study.path.parent)
    if found is None:
        return {}
    if Path(source).is_absolute():
        notice(f"the prompts {source} are not sent: they must lie at this path on the node where the study runs")
        return {}
    place = PurePath(os.path.normpath(file.parent / source if (study.path.parent / source).is_file() else source))
    if ".." in place.parts:
        raise BadInput(f"the file of prompts {source} cannot be sent: put it beside the study file")
    return {place: found}


def _modules() -> Iterator[tuple[PurePath, Path]]:
    """Yield the files of all modules that are imported and not installed: plug-ins, and what they import."""
    libraries = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "")
        if file.suffix != ".py" or name in ("__main__", "__mp_main__") or name.partition(".")[0] == "lotts_search":
            continue
        installed = INSTALLED & set(file.parts) or any(file.resolve().is_relative_to(other) for other in libraries)
        if installed or not file.is_file():
            continue
        parts = name.split(".")
        if not all(
            part.isidentifier() for part in parts
        ):  # somebody loaded a file under a name that nothing can import
            continue
        yield PurePath(*parts, file.name) if file.name == "__init__.py" else PurePath(*parts[:-1], file.name), file


def _below(path: Path) -> bool:
    return path.resolve().is_relative_to(Path.cwd().resolve())


def _place(path: Path) -> PurePath:
    """Return the path of a file from the current folder."""
    if not path.exists():
        raise BadInput(f"there is no file {path}")
    if not _below(path):
        raise BadInput(
            f"{path} is not below the current folder {Path.cwd()}: run the command from a folder that holds it"
        )
    return PurePath(path.resolve().relative_to(Path.cwd().resolve()))

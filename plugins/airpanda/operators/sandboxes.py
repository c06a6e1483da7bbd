"""Files of the worker that jobs find in their sandbox: uploaded once, named by each job as an input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from airpanda.messages import InputFile, JobSpec, SandboxView
from airpanda.operators import checks


def files_of(sandbox: Any) -> list[Path]:
    """The files that an operator's ``sandbox`` names: a path, or a list of paths.

    Raises:
        ValueError: one is no file here, or its name cannot be that of an input.
    """
    given = [sandbox] if isinstance(sandbox, (str, PathLike)) else checks.list_of("sandbox", sandbox)
    files: dict[str, Path] = {}
    for each in given:
        if not isinstance(each, (str, PathLike)) or not each:
            raise ValueError(f"sandbox must name files by their paths, and one {checks.rendered(each)}")
        path = Path(fspath(each))
        if not path.is_absolute():
            raise ValueError(f"sandbox: {path} must be an absolute path, such as Path(__file__).parent / {path.name!r}")
        if path.name in files:
            raise ValueError(f"sandbox: two files have the name {path.name}")
        if "\0" in str(path) or not path.is_file():
            raise ValueError(f"sandbox: {str(path)!r} is no file on this worker (a directory goes in as a tar file)")
        checks.checked(f"sandbox: {path.name}", InputFile.model_validate, {"lfn": path.name, "source": "file:///"})
        files[path.name] = path
    return list(files.values())


def with_files(
    specs: Sequence[JobSpec],
    files: Iterable[Path],
    upload: Callable[[Path], SandboxView],
    *,
    scripts: Iterable[str] = (),
) -> Sequence[JobSpec]:
    """The jobs with each file as one more input.

    Args:
        scripts: names of those that all of them have.

    Raises:
        ValueError: a job has an input or a script of that name already.
    """
    by_name = {file.name: file for file in files}
    if not by_name:
        return specs
    for name in scripts:
        if name in by_name:
            raise ValueError(f"sandbox: {name} is the name of a script, too")
    for spec in specs:
        for name in (*spec.scripts, *(each.lfn for each in spec.inputs)):
            if name in by_name:
                raise ValueError(f"sandbox: job {spec.job_name} has another input or script with the name {name}")
    inputs = [InputFile(lfn=name, source=upload(file).source) for name, file in by_name.items()]
    return [spec.model_copy(update={"inputs": [*spec.inputs, *inputs]}) for spec in specs]

"""The points gateway. `pyproject.toml` names its version, and the metadata of the installed package repeats it."""

from pathlib import Path


def read_version() -> str:
    """The version of the installed package, or of `pyproject.toml` beside `app/` where no package is installed.

    The container image holds a copy of the code and does not install it.
    """
    # Imported here: every process imports `app`, and few ask for the version.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("points-gateway")
    except PackageNotFoundError:
        import tomllib

        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
        return str(project["version"])

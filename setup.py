"""Names the packages, which setup.cfg alone cannot: the folder `launch/` is installed as `ddjax.launch`."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["ddjax", "ddjax.*"])
    + [f"ddjax.{name}" for name in find_packages(include=["launch", "launch.*"])],
    package_dir={"ddjax.launch": "launch"},
)

"""What pyproject.toml cannot say: the wheel holds `configs/` as a folder of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bsq_jax", "bsq_jax.*"]), "bsq_jax.configs"],
    package_dir={"bsq_jax.configs": "configs"},
)

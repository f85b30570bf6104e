"""Needs neither torch nor Detectron2, so that it installs into any environment, in any order."""

from setuptools import find_packages, setup

setup(
    name="bn_detect",
    version="0.1.0",
    description="The normalization batch of BatchNorm in R-CNN heads, for Detectron2",
    license="Apache-2.0",
    python_requires=">=3.10",
    py_modules=["bn_detect_command"],
    entry_points={"console_scripts": ["bn-detect = bn_detect_command:main"]},
    packages=find_packages(include=["bn_detect", "bn_detect.*"]),
    package_data={"": ["*", "templates/*"]},
    exclude_package_data={"": ["*.py[co]"]},
    install_requires=[
        "jinja2",
        "matplotlib",
        "numpy",
        "pillow",
        "pycocotools>=2.0.2",
        "scikit-learn",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "slurm": ["submitit"],
        "corruptions": ["imagecorruptions==1.1.2", "scikit-image>=0.21"],
    },
)

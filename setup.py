"""Build and installation: Python packages, the C engine (through cffi) and the two commands.

daemon/ and kernel_shim/ stand at the top of the tree and install as infiniswap.daemon and infiniswap.kernel_shim,
because a top-level module named daemon would collide with python-daemon's. The symbolic links infiniswap/daemon and
infiniswap/kernel_shim make the same names work in a checkout: for an editable install, for mypy and for editors.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FOLDERS = {"infiniswap.daemon": "daemon", "infiniswap.kernel_shim": "kernel_shim"}


class BuildEngine(build_ext):
    """Of a checkout, names the engine as infiniswap/engine/build.py does, so that a rebuild in place replaces it."""

    def finalize_options(self) -> None:
        """Take back the stable-ABI name that cffi chooses here (and only here), which suits a wheel."""
        super().finalize_options()
        if self.inplace or getattr(self, "editable_mode", False):
            for extension in self.extensions or []:
                extension.py_limited_api = False


def version() -> str:
    """The version that infiniswap/__init__.py states."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "infiniswap" / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("setup.py: infiniswap/__init__.py states no __version__")
    return found.group(1)


def packages() -> list[str]:
    """Every package under infiniswap/ but its C tests, and the two folders above with what they hold."""
    names = set(find_packages(str(ROOT), include=["infiniswap", "infiniswap.*"]))
    for package, folder in FOLDERS.items():
        names |= {package, *(f"{package}.{name}" for name in find_packages(str(ROOT / folder)))}
    return sorted(name for name in names if not name.startswith("infiniswap.engine.tests"))


setup(
    name="infiniswap",
    version=version(),
    description="Remote memory as a Linux block device, in userspace",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=packages(),
    package_dir=FOLDERS,
    package_data={
        "infiniswap": ["py.typed", "web/*"],
        "infiniswap.engine": ["include/*.h"],
        "infiniswap.kernel_shim": ["systemd/*.service", "systemd/*.conf"],
    },
    cmdclass={"build_ext": BuildEngine},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one wheel for this Python and all later ones
    cffi_modules=["infiniswap/engine/build.py:ffibuilder"],
    install_requires=[
        # Lower bound: Debian 12's, or the oldest release whose API is used; upper bound: the next that may break it.
        "aiohttp>=3.8.4,<4",
        "cffi>=1.15.1,<3",
        "click>=8.1.3,<9",
        "cryptography>=38.0.4,<60",  # certificates alone, with what both 38 and the latest have
        "dnspython>=2.3,<3",
        "numpy>=1.24.2,<3",
        "prometheus-client>=0.16,<1",
        "psutil>=5.9.4,<8",
        "PyYAML>=6,<7",
        "pyroute2>=0.7.2,<0.10",
        "rich>=13.3.1,<16",
    ],
    entry_points={
        "console_scripts": [
            "infiniswap=infiniswap.cli.main:main",
            "infiniswapd=infiniswap.daemon.main:main",
        ],
    },
)

"""Builds infiniswap.engine._engine, the C data path, with cffi's API mode.

The declarations are the public headers themselves, run through the preprocessor, so they are written once.
"""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HEADERS = [HERE / "include" / name for name in ("infiniswap_log.h", "infiniswap_engine.h")]
SOURCES = sorted((HERE / "src").glob("*/*.c"))
# One folder for each concern; a header's name is its own, whichever folder it stands in.
FOLDERS = sorted(path for path in (HERE / "src").iterdir() if path.is_dir())
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wconversion"]
# -fno-semantic-interposition and hidden symbols let the compiler inline across the engine's own functions.
FLAGS = ["-std=c17", "-O2", "-g", "-D_GNU_SOURCE", "-fvisibility=hidden", "-fno-semantic-interposition", "-pthread"]


def declarations() -> str:
    """The public headers without includes and with their macros expanded, as cffi's parser wants it."""
    text = re.sub(r"^#include.*$", "", "".join(header.read_text() for header in HEADERS), flags=re.MULTILINE)
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "gcc").split()[0]
    done = subprocess.run([compiler, "-E", "-P", "-"], input=text, capture_output=True, text=True, check=True)
    return done.stdout


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "infiniswap.engine._engine",
    '#include "infiniswap_engine.h"',
    sources=[os.path.relpath(path, ROOT) for path in SOURCES],
    include_dirs=[str(HERE / "include"), *map(str, FOLDERS)],
    libraries=["uring", "crypto", "pthread"],
    # cffi's generated wrapper is not ours to hold to -Wconversion; the C test build compiles each source with WARNINGS.
    extra_compile_args=[*FLAGS, "-Wall", "-Wextra"],
    depends=[*map(str, HEADERS), *map(str, sorted((HERE / "src").glob("*/*.h")))],
)

if __name__ == "__main__":
    os.chdir(ROOT)
    ffibuilder.compile(verbose=True)

# What cffi builds: typed in binding.py.
from typing import Any

ffi: Any
lib: Any

"""One target under atheris, guided by coverage: `python -m tests.fuzz.run TARGET CORPUS [LIBFUZZER OPTION ...]`.

CORPUS is a folder that grows; the target's own seeds are written into it first. What is found is left where
-artifact_prefix says, and replayed by giving that file in the place of CORPUS.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path

import atheris


def main(arguments: list[str]) -> None:
    """Fuzz until an option of libFuzzer ends it."""
    name, place, *options = arguments
    with atheris.instrument_imports(include=["infiniswap", "tomllib", "tests.fuzz"]):
        from tests.fuzz.targets import targets
    logging.disable(logging.WARNING)
    target = targets()[name]
    corpus = Path(place)
    if not corpus.is_file():
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in target.seeds():
            (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    atheris.Setup([sys.argv[0], str(corpus), *options], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])

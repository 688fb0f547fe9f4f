"""The C data path and its typed face (binding.py)."""

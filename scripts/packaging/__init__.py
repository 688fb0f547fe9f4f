"""What packages hold besides the code: units, man pages, completion."""

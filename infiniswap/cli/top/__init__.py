"""infiniswap top, in parts: what is asked, what follows from it, how it is drawn, the terminal."""

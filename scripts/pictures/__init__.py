"""Pictures in the documentation, made of programs that run."""

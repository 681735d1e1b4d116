"""Data lists, NIfTI files, integrity checks, loading and phantoms."""

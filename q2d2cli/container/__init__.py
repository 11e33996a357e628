"""The .q2d file format, versions 1 and 2 (docs/format.md): header, packing, blocks. Imports no torch."""

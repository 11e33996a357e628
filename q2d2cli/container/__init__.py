"""The .q2d file format, version 1 (docs/format.md): header, packing, blocks. Imports no torch."""

"""The bundled world: scenes of coloured shapes, drawn, described, painted by a small model, and detected."""

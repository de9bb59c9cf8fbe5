"""How the lens runs beside serving; what it measures is in `gradless`."""

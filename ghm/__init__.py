"""Training object detectors with gradient-harmonized losses, and finding out whether they help."""

__version__ = "0.1.0"

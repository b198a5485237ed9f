"""A distributed experiment runner with tracking, for transfer learning on image folders."""

__version__ = "0.1.0"

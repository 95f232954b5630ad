"""``python -m medseg`` is the same as ``medseg``."""

from medseg.cli.main import start

start()

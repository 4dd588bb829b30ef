"""``python -m lohan_core.cli``."""

from lohan_core.cli import main

main()

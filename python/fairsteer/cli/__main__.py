"""``python -m fairsteer.cli`` is the console command ``fairsteer``."""

from . import main

main()

"""The script that PyInstaller freezes: `tmerge`, started as a program."""

import sys

from tmerge_tui.__main__ import main

sys.exit(main())

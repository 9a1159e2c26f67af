"""`python -m nnicompress`."""

import sys

from nnicompress.cli import main

sys.exit(main())

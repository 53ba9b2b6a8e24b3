"""`python -m ssgrl_fast` is `ssgrl-fast`."""

from __future__ import annotations

import sys

from ssgrl_fast_cli import main

sys.exit(main())

"""``python3 -m airpanda_demo up|once|clean``. Any Python may read this file, so that a wrong one is told so."""

import sys

if __name__ == "__main__":
    if sys.version_info[:2] != (3, 11):
        sys.exit(
            f"airpanda demo: its packages are pinned for Python 3.11 and {sys.executable} is Python"
            f" {sys.version_info[0]}.{sys.version_info[1]}; run it again with PYTHON=/path/to/python3.11"
        )
    from airpanda_demo.bootstrap import main

    sys.exit(main(sys.argv[1:]))

"""python -m common.data_utils"""

import sys

from common.data_utils.cli import main

if __name__ == "__main__":
    sys.exit(main())

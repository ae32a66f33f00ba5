"""Train or evaluate with CoOp's flags: python train.py --trainer CoOpDHO --dataset imagenet --root DATA --shots 16."""

import sys

from dho_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())

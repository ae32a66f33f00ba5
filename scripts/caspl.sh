#!/usr/bin/env bash
# CasPL against DHO on CoOp and PromptSRC: the same teacher, labels and seeds. CasPL's stage one is run once a seed and
# shared by both methods. What is finished is not run again.
#
#   bash scripts/caspl.sh DATA [DATASET] [further flags of `python -m dho_plugin table13`]
#   bash scripts/caspl.sh ~/data imagenet --teacher ViT-L/14
#   bash scripts/caspl.sh "" shapes                                             # the built-in demo
set -euo pipefail
DATA=$1 DATASET=${2:-imagenet}
shift $(($# < 2 ? $# : 2))
HERE=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH=${HERE}${PYTHONPATH:+:${PYTHONPATH}} python -m dho_plugin table13 --root "${DATA}" --dataset "${DATASET}" \
    --output-dir "${OUTPUT:-output}/caspl/${DATASET}" --seeds ${SEEDS:-1 2 3} \
    --rows zero-shot --rows CoOp --rows PromptSRC --rows CasPL "$@"

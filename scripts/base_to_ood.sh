#!/usr/bin/env bash
# Train on one dataset and evaluate on its shifted test sets (ImageNet: V2, Sketch, R, A), three seeds, in the folders of
# CoOp's scripts. What is finished is not run again; what was interrupted goes on from the state that it saved when it was
# told to stop, or a few minutes before it was killed (TRAIN.SAVE_MINUTES).
#
#   bash scripts/base_to_ood.sh DATA TRAINER [DATASET] [SHOTS] [CFG] [KEY VALUE ...]
#   bash scripts/base_to_ood.sh ~/data CoOpDHO imagenet 16 vit_b16_ep50
#   bash scripts/base_to_ood.sh "" CoOpDHO shapes                              # the built-in demo
set -euo pipefail
DATA=$1 TRAINER=$2 DATASET=${3:-imagenet} SHOTS=${4:-16} CFG=${5:-}
shift $(($# < 5 ? $# : 5))
HERE=$(cd "$(dirname "$0")/.." && pwd)
COMMON=${OUTPUT:-output}/base2ood/${DATASET}/shots_${SHOTS}/${TRAINER}/${CFG:-default}

for SEED in ${SEEDS:-1 2 3}; do
    DIR=${COMMON}/seed${SEED}
    if [ -f "${DIR}/finished" ]; then
        if [ "$(cat "${DIR}/finished")" != "$*" ]; then
            echo "error: ${DIR} was run with other options: $(cat "${DIR}/finished")" >&2
            exit 2
        fi
        echo "Results are in ${DIR}: not run again"
        continue
    fi
    python "${HERE}/train.py" --root "${DATA}" --trainer "${TRAINER}" --dataset "${DATASET}" --shots "${SHOTS}" \
        ${CFG:+--config-file "${HERE}/configs/trainers/${TRAINER}/${CFG}.yaml"} \
        --seed "${SEED}" --output-dir "${DIR}" --ood "$@"
    echo "$*" > "${DIR}/finished"
done
python "${HERE}/scripts/average.py" "${COMMON}"
